"""A consistent cut of a job in memory, written as a whole checkpoint or read back from one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from elasticps.checkpoint.directory import make_root, path_of, remove_leftovers, temporary_path_of
from elasticps.checkpoint.disk import OS_DISK, Disk
from elasticps.checkpoint.manifest import (
    FORMAT,
    MANIFEST,
    DataPosition,
    FileEntry,
    Manifest,
    Scalar,
    StateEntry,
    encoded,
    read_manifest,
)
from elasticps.checkpoint.tensor_file import read_tensors, write_tensors
from elasticps.core.blocks import Model
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

VALUES = "values.safetensors"
OPTIMIZER = "optimizer.safetensors"

State = Mapping[str, torch.Tensor | Scalar]
"""One parameter's optimizer state as torch keeps it: tensors and plain numbers by key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """All parameters' values and optimizer state, by parameter name, after ``round`` rounds.

    ``owner`` is the identity of the ``job``, which no other job of any cluster has.
    """

    job: str
    owner: str
    round: Round
    model: Model
    data: DataPosition | None
    values: Mapping[str, torch.Tensor]
    state: Mapping[str, State]


def write(root: Path, snapshot: Snapshot, *, version: str, disk: Disk = OS_DISK) -> Path:
    """Write a checkpoint into ``root``, whole and durable or not at all; returns its directory.

    ``version`` is that of elasticps. Raises CheckpointError: what was there before is as it was.
    """
    place = path_of(root, snapshot.round)
    temporary = temporary_path_of(root, snapshot.round)
    try:
        make_root(root, disk=disk)
        remove_leftovers(root, disk=disk)
        if disk.exists(place):
            raise CheckpointError("there is one already", where=str(place), field="checkpoint_dir")
        disk.make_directory(temporary)
        _fill(temporary, snapshot, version, disk)
        disk.rename(temporary, place)
        disk.sync_directory(root)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint could not be written: {error.strerror}",
            where=str(place),
            field="checkpoint_dir",
            hint="the checkpoints before it are whole",
        ) from error
    finally:
        disk.remove_tree(temporary, ignore_errors=True)
    return place


def _fill(directory: Path, snapshot: Snapshot, version: str, disk: Disk) -> None:
    """Make all files, the manifest last, each on the disk before what speaks of it."""
    values = write_tensors(directory / VALUES, snapshot.values, disk=disk)
    optimizer = write_tensors(directory / OPTIMIZER, _state_tensors(snapshot), disk=disk)
    manifest = _manifest(snapshot, version, values, optimizer)
    disk.create(directory / MANIFEST, [encoded(manifest)])
    disk.sync_directory(directory)


def _state_tensors(snapshot: Snapshot) -> dict[str, torch.Tensor]:
    return {
        _state_name(name, key): item
        for name, state in snapshot.state.items()
        for key, item in state.items()
        if isinstance(item, torch.Tensor)
    }


def _state_name(parameter: str, key: str) -> str:
    return f"{parameter}/{key}"


def _manifest(
    snapshot: Snapshot, version: str, values: FileEntry, optimizer: FileEntry
) -> Manifest:
    return Manifest(
        format=FORMAT,
        elasticps=version,
        created_unix=time.time(),
        job=snapshot.job,
        owner=snapshot.owner,
        round=snapshot.round,
        model=snapshot.model,
        state={name: _state_entry(state) for name, state in snapshot.state.items()},
        data=snapshot.data,
        values=values,
        optimizer=optimizer,
    )


def _state_entry(state: State) -> StateEntry:
    tensors = tuple(key for key, item in state.items() if isinstance(item, torch.Tensor))
    scalars = {key: item for key, item in state.items() if not isinstance(item, torch.Tensor)}
    return StateEntry(tensors=tensors, scalars=scalars)


def read(directory: Path) -> Snapshot:
    """Read the checkpoint in ``directory``, checked to the bit.

    Raises CheckpointError, naming the field, for one that is damaged or not what it says.
    """
    manifest = read_manifest(directory)
    values = read_tensors(directory, manifest.values, "values")
    tensors = read_tensors(directory, manifest.optimizer, "optimizer")
    _check_values(directory, manifest, values)
    return Snapshot(
        job=manifest.job,
        owner=manifest.owner,
        round=manifest.round,
        model=manifest.model,
        data=manifest.data,
        values=values,
        state={
            name: _state(directory, name, entry, tensors) for name, entry in manifest.state.items()
        },
    )


def _check_values(directory: Path, manifest: Manifest, values: Mapping[str, torch.Tensor]) -> None:
    for parameter in manifest.model.parameters:
        found = values.get(parameter.name)
        wanted = f"{list(parameter.shape)} {parameter.dtype}"
        there = f"{list(found.shape)} {_dtype_name(found)}" if found is not None else "missing"
        if there != wanted:
            raise CheckpointError(
                f"the value of {parameter.name} is {there}",
                where=str(directory / manifest.values.name),
                field=parameter.name,
                limit=wanted,
            )


def _dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _state(
    directory: Path, name: str, entry: StateEntry, tensors: Mapping[str, torch.Tensor]
) -> State:
    state: dict[str, torch.Tensor | Scalar] = dict(entry.scalars)
    for key in entry.tensors:
        found = tensors.get(_state_name(name, key))
        if found is None:
            raise CheckpointError(
                f"the state {key} of {name} is missing", where=str(directory), field="optimizer"
            )
        state[key] = found
    return state
