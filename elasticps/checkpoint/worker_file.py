"""What a checkpoint has of the main worker itself: buffers, frozen parameters, random states."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.manifest import BUFFER, UNKNOWN_OPTIMIZER, FileEntry, Manifest
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import Earlier, read_tensors, write_tensors
from elasticps.checkpoint.url import Url

WORKER = "worker.safetensors"
FROZEN = "frozen.safetensors"
RANDOM = "random/"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """CPU tensors: ``buffers`` and ``frozen`` parameters by their names in the model's state_dict,
    ``random`` (uint8) by the generator whose state they are.

    ``tied``: further names there, each with the first one of the same tensor. ``left_out``: those
    whose dtype no file can have, or that are no tensors.
    """

    buffers: Mapping[str, torch.Tensor]
    random: Mapping[str, torch.Tensor]
    frozen: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]
    left_out: Sequence[str] = ()


def write_worker(directory: Path, state: WorkerState, *, disk: Disk = STORAGE) -> FileEntry:
    """Write it beside the blocks, durably. Raises OSError, and CheckpointError for a dtype."""
    tensors = {BUFFER + name: item for name, item in state.buffers.items()}
    tensors |= {RANDOM + name: item for name, item in state.random.items()}
    return write_tensors(_path_of(directory, WORKER), tensors, disk=disk)


def write_frozen(
    directory: Path, state: WorkerState, earlier: Earlier | None, *, disk: Disk = STORAGE
) -> FileEntry | None:
    """The same of the frozen parameters, by themselves: where the ``earlier`` file has the very
    same, it gets a second name. None where there are none."""
    if not state.frozen:
        return None
    path = _path_of(directory, FROZEN)
    return write_tensors(path, state.frozen, disk=disk, earlier=earlier)


def _path_of(directory: Path, name: str) -> Path:
    """At a URL a name of its own: a main worker that was declared dead may be writing there too."""
    path = directory / name
    return path.with_stem(f"{path.stem}-{secrets.token_hex(4)}") if isinstance(path, Url) else path


def read_worker(directory: Path, manifest: Manifest) -> WorkerState:
    """Empty for a checkpoint that has none, as earlier versions made. Raises CheckpointError.

    One that was made of weights alone has buffers and frozen parameters among its values.
    """
    tensors, frozen = {}, {}
    if manifest.worker is not None:
        tensors = read_tensors(directory, manifest.worker, "worker")
    if manifest.frozen is not None:
        frozen = read_tensors(directory, manifest.frozen, "frozen")
    if manifest.model.optimizer == UNKNOWN_OPTIMIZER and manifest.values is not None:
        frozen = read_tensors(directory, manifest.values, "values")
    return WorkerState(
        buffers=_below(BUFFER, tensors),
        random=_below(RANDOM, tensors),
        frozen=frozen,
        tied=manifest.tied,
        left_out=manifest.left_out,
    )


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)
    }
