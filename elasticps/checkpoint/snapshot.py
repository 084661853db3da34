"""A consistent cut of a job in memory, written as a whole checkpoint or read back from one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from elasticps.checkpoint.directory import candidates, point_to_older
from elasticps.checkpoint.disk import Disk
from elasticps.checkpoint.draft import Draft
from elasticps.checkpoint.integrity import check_file
from elasticps.checkpoint.manifest import (
    BY_PARAMETER,
    BlockEntry,
    DataPosition,
    FileEntry,
    Manifest,
    Scalar,
    StateEntry,
    read_manifest,
)
from elasticps.checkpoint.storage import STORAGE
from elasticps.checkpoint.tensor_file import read_tensors, write_tensors
from elasticps.core.blocks import Model
from elasticps.core.ids import Round
from elasticps.errors import CheckpointError

VALUES = "values.safetensors"
OPTIMIZER = "optimizer.safetensors"
VALUE = "value"
"""The tensor of a block's file that is no optimizer state, and is as workers read it."""
MASTER = "master"
"""The key under which a parameter's float32 copy is beside its state, where it says more than the
parameter: in checkpoints, and in ``state_dict()``."""

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


def write(root: Path, snapshot: Snapshot, *, version: str, disk: Disk = STORAGE) -> Path:
    """Write a checkpoint into ``root``, whole and durable or not at all; returns its directory.

    ``version`` is that of elasticps. Raises CheckpointError: what was there before is as it was.
    """
    draft = Draft(root, snapshot.round, disk=disk)
    try:
        draft.begin()
        draft.commit(_filled(draft.directory, snapshot, version, disk))
    except OSError as error:
        raise not_written(error, draft.place) from error
    finally:
        draft.drop()
    return draft.place


def not_written(error: OSError, place: Path) -> CheckpointError:
    """What to raise where the checkpoint that is to be in ``place`` could not be made."""
    return CheckpointError(
        f"the checkpoint could not be written: {error.strerror}",
        where=str(place),
        field="checkpoint_dir",
        hint="the checkpoints before it are whole",
    )


def _filled(directory: Path, snapshot: Snapshot, version: str, disk: Disk) -> Manifest:
    values = write_tensors(directory / VALUES, snapshot.values, disk=disk)
    optimizer = write_tensors(directory / OPTIMIZER, _state_tensors(snapshot), disk=disk)
    return _manifest(snapshot, version, values, optimizer)


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
        format=BY_PARAMETER,
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
    """Read the checkpoint in ``directory``, checked to the bit: the files of its worker too.

    Raises CheckpointError, naming the field, for one that is damaged or not what it says.
    """
    manifest = read_manifest(directory)
    for field, file in manifest.of_the_worker:
        check_file(directory / file.name, file, field)
    values, state = _read_whole(directory, manifest) if manifest.values else ({}, {})
    shapes = {row.name: row.shape for row in manifest.model.parameters}
    for index, entry in enumerate(manifest.blocks):
        tensors = read_tensors(directory, entry.file, f"blocks[{index}].file")
        _put(values, state, shapes[entry.parameter], entry, tensors, directory)
    _check_values(directory, manifest, values)
    return Snapshot(
        job=manifest.job,
        owner=manifest.owner,
        round=manifest.round,
        model=manifest.model,
        data=manifest.data,
        values=values,
        state=state,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The newest checkpoint that is whole; ``damaged`` are newer, with what is wrong with each."""

    directory: Path
    snapshot: Snapshot
    damaged: tuple[tuple[Path, CheckpointError], ...]


def read_newest(place: Path) -> Found:
    """Read the newest checkpoint in ``place`` that is whole, or ``place``, where it is one itself.

    Raises CheckpointError when there is none: of several that are damaged the newest one's.
    """
    damaged: list[tuple[Path, CheckpointError]] = []
    for directory in candidates(place):
        try:
            return Found(directory=directory, snapshot=read(directory), damaged=tuple(damaged))
        except CheckpointError as error:
            point_to_older(error, directory)
            damaged.append((directory, error))
    raise damaged[0][1]


def _read_whole(directory: Path, manifest: Manifest) -> tuple[dict[str, Any], dict[str, Any]]:
    assert manifest.values is not None
    assert manifest.optimizer is not None
    values = read_tensors(directory, manifest.values, "values")
    tensors = read_tensors(directory, manifest.optimizer, "optimizer")
    return values, {
        name: _state(directory, name, entry, tensors) for name, entry in manifest.state.items()
    }


def _put(
    values: dict[str, torch.Tensor],
    state: dict[str, dict[str, torch.Tensor | Scalar]],
    shape: tuple[int, ...],
    entry: BlockEntry,
    tensors: dict[str, torch.Tensor],
    directory: Path,
) -> None:
    """Put what a block's file holds in its place within the parameter's tensors."""
    numel = entry.stop - entry.start
    value = tensors.pop(VALUE, None)
    if value is None or value.numel() != numel:
        raise CheckpointError(
            f"a part of the value of {entry.parameter} is missing",
            where=str(directory / entry.file.name),
            field=entry.parameter,
            limit=f"{numel} elements",
        )
    whole = values.setdefault(entry.parameter, torch.empty(shape, dtype=value.dtype))
    whole.view(-1)[entry.start : entry.stop] = value.view(-1)
    if not (tensors or entry.scalars):
        return
    its = state.setdefault(entry.parameter, {})
    its.update(entry.scalars)
    for key, tensor in tensors.items():
        if tensor.dim() > 0 and tensor.numel() == numel:
            full = its.setdefault(key, torch.empty(shape, dtype=tensor.dtype))
            assert isinstance(full, torch.Tensor)
            full.view(-1)[entry.start : entry.stop] = tensor.view(-1)
        else:
            its[key] = tensor


def _check_values(directory: Path, manifest: Manifest, values: Mapping[str, torch.Tensor]) -> None:
    for parameter in manifest.model.parameters:
        found = values.get(parameter.name)
        wanted = f"{list(parameter.shape)} {parameter.dtype}"
        there = f"{list(found.shape)} {_dtype_name(found)}" if found is not None else "missing"
        if there != wanted:
            raise CheckpointError(
                f"the value of {parameter.name} is {there}",
                where=str(directory),
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
