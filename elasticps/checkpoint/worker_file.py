"""What a checkpoint has of the main worker itself: its model's buffers and its random states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.manifest import FileEntry, Manifest
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import read_tensors, write_tensors

WORKER = "worker.safetensors"
BUFFER = "buffer/"
RANDOM = "random/"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """CPU tensors: ``buffers`` by their names in the model's state_dict, ``random`` (uint8) by the
    generator whose state they are."""

    buffers: Mapping[str, torch.Tensor]
    random: Mapping[str, torch.Tensor]


def write_worker(directory: Path, state: WorkerState, *, disk: Disk = STORAGE) -> FileEntry:
    """Write it beside the blocks, durably. Raises OSError, and CheckpointError for a dtype."""
    tensors = {BUFFER + name: item for name, item in state.buffers.items()}
    tensors |= {RANDOM + name: item for name, item in state.random.items()}
    return write_tensors(directory / WORKER, tensors, disk=disk)


def read_worker(directory: Path, manifest: Manifest) -> WorkerState | None:
    """None for a checkpoint that has none, as earlier versions made. Raises CheckpointError."""
    if manifest.worker is None:
        return None
    tensors = read_tensors(directory, manifest.worker, "worker")
    return WorkerState(buffers=_below(BUFFER, tensors), random=_below(RANDOM, tensors))


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): item for name, item in tensors.items() if name.startswith(prefix)
    }
