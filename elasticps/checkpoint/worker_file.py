"""What a checkpoint has of the main worker itself: buffers, frozen parameters, random states."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import xxhash

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.manifest import BUFFER, UNKNOWN_OPTIMIZER, FileEntry, Manifest
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import Earlier, pieces_of, read_tensors, write_tensors
from elasticps.checkpoint.url import Url
from elasticps.errors import CheckpointError

WORKER = "worker.safetensors"
FROZEN = "frozen.safetensors"
RANDOM = "random/"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """Tensors: ``buffers`` and ``frozen`` parameters by their names in the model's state_dict,
    ``random`` (uint8) by the generator whose state they are.

    ``tied``: further names there, each with the first one of the same tensor. ``left_out``: the
    names of what no file can have, with its dtype. ``prints``: what the ``frozen`` ones that are
    not copied were at the cut.
    """

    buffers: Mapping[str, torch.Tensor]
    random: Mapping[str, torch.Tensor]
    frozen: Mapping[str, torch.Tensor]
    tied: Mapping[str, str]
    left_out: Mapping[str, str] = field(default_factory=dict)
    prints: Mapping[str, int] = field(default_factory=dict)


def print_of(tensor: torch.Tensor) -> int:
    """What tells a tensor from what it was: xxh3 of its bytes. It is not copied."""
    digest = xxhash.xxh3_128()
    for piece in pieces_of(tensor):
        digest.update(piece)
    return digest.intdigest()


def write_worker(directory: Path, state: WorkerState, *, disk: Disk = STORAGE) -> FileEntry:
    """Write it beside the blocks, durably. Raises OSError, and CheckpointError for a dtype."""
    tensors = {BUFFER + name: item for name, item in state.buffers.items()}
    tensors |= {RANDOM + name: item for name, item in state.random.items()}
    return write_tensors(_path_of(directory, WORKER), tensors, disk=disk)


def write_frozen(
    directory: Path, state: WorkerState, earlier: Earlier | None, *, disk: Disk = STORAGE
) -> FileEntry | None:
    """The same of the frozen parameters, by themselves: where the ``earlier`` file has the very
    same, it gets a second name. None where there are none.

    Raises CheckpointError as well where one that was not copied has changed since the cut.
    """
    if not state.frozen:
        return None
    path = _path_of(directory, FROZEN)
    entry = write_tensors(path, state.frozen, disk=disk, earlier=earlier)
    for name, print_ in state.prints.items():
        if print_of(state.frozen[name]) != print_:
            raise CheckpointError(
                f"{name}, which the job does not train, was changed while it was written",
                where=str(path),
                field=name,
                hint="the next checkpoint copies it first",
            )
    return entry


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
    )


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)
    }
