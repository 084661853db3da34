"""Optimizer state in its two forms: by block as servers hold it, by parameter as torch does."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from elasticps.checkpoint.snapshot import MASTER, VALUE
from elasticps.core.blocks import Hyperparameters
from elasticps.wire.messages import StateMeta, TensorMeta
from elasticps.wire.tensors import bytes_of, dtype_name, dtype_named
from elasticps.worker.parameters import BlockMemory

States = Sequence[tuple[StateMeta, memoryview]]


def by_parameter(memory: Sequence[BlockMemory], states: States) -> dict[torch.Tensor, Any]:
    """Assemble each parameter's state from its blocks'.

    A tensor with an element for each of the block's is cut by blocks; any other (a step count)
    is the same in all of a parameter's blocks. A value that is wider than its parameter, and not
    only a widened one, is there as ``MASTER``.
    """
    whole: dict[torch.Tensor, Any] = {}
    for item, (meta, payload) in zip(memory, states, strict=True):
        parameter = item.parameter
        state = whole.setdefault(parameter, {})
        state.update(meta.scalars)
        for row, tensor in _tensors(meta, payload):
            if row.key == VALUE and tensor.dtype == parameter.dtype:
                continue
            key = MASTER if row.key == VALUE else row.key
            if row.key == VALUE or _is_cut(item, row):
                full = state.setdefault(key, torch.empty(parameter.shape, dtype=tensor.dtype))
                full.view(-1)[item.block.start : item.block.stop] = tensor.view(-1)
            else:
                state[row.key] = tensor
    for parameter, state in whole.items():
        master = state.get(MASTER)
        if master is not None and torch.equal(master, master.to(parameter.dtype).to(master.dtype)):
            del state[MASTER]
    return {parameter: state for parameter, state in whole.items() if state}


def values_by_parameter(
    memory: Sequence[BlockMemory], states: States
) -> dict[torch.Tensor, torch.Tensor]:
    """Each parameter's value as its blocks hold it, whatever the parameter itself is by now."""
    whole: dict[torch.Tensor, torch.Tensor] = {}
    for item, (meta, payload) in zip(memory, states, strict=True):
        empty = torch.empty(item.parameter.shape, dtype=item.parameter.dtype)
        full = whole.setdefault(item.parameter, empty)
        for row, tensor in _tensors(meta, payload):
            if row.key == VALUE:
                full.view(-1)[item.block.start : item.block.stop] = tensor.view(-1)
    return whole


def by_block(memory: Sequence[BlockMemory], state: Mapping[torch.Tensor, Any]) -> States:
    """Cut each parameter's state into its blocks', each with the parameter's present value.

    A ``MASTER`` is its value where the parameter is that, rounded; any other is out of date.
    """
    return [_block_state(item, state.get(item.parameter, {})) for item in memory]


def _block_state(item: BlockMemory, state: Mapping[str, Any]) -> tuple[StateMeta, memoryview]:
    rows: list[TensorMeta] = []
    pieces: list[memoryview] = []
    scalars: Hyperparameters = {}
    first, value = item.initial()
    master = state.get(MASTER)
    if (
        item.master
        and master is not None
        and torch.equal(master.to(item.parameter.dtype), item.parameter.detach())
    ):
        part = master.contiguous().view(-1)[item.block.start : item.block.stop]
        rows.append(TensorMeta(VALUE, dtype_name(part.dtype), (part.numel(),), part.nbytes))
        pieces.append(bytes_of(part))
    else:
        rows.extend(first.tensors)
        pieces.append(value)
    for key, entry in state.items():
        if key == MASTER:
            continue
        if not torch.is_tensor(entry):
            scalars[key] = entry
            continue
        tensor = _fitting(item, entry.detach(), narrow=master is not None).contiguous()
        if tensor.shape == item.parameter.shape and tensor.dim() > 0:
            tensor = tensor.view(-1)[item.block.start : item.block.stop]
        rows.append(TensorMeta(key, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.nbytes))
        pieces.append(bytes_of(tensor))
    return StateMeta(tensors=tuple(rows), scalars=scalars), memoryview(b"".join(pieces))


def _fitting(item: BlockMemory, entry: torch.Tensor, *, narrow: bool) -> torch.Tensor:
    """State of a job with master copies in one without, or the other way round, is converted."""
    if entry.shape != item.parameter.shape or not entry.is_floating_point():
        return entry
    if item.master:
        return entry.to(torch.float32)
    return entry.to(item.parameter.dtype) if narrow else entry


def loaded(
    masters: Collection[torch.Tensor],
    groups: Sequence[Mapping[str, Any]],
    state_dict: Mapping[str, Any],
    state: Mapping[torch.Tensor, Any],
) -> dict[torch.Tensor, Any]:
    """``state``, which torch has loaded from ``state_dict``, as the servers are to have it.

    Torch gives a state its parameter's dtype, which is too narrow for that of a master copy:
    ``masters`` are the parameters that have one.
    """
    ours = [item for group in groups for item in group["params"]]
    theirs = [key for group in state_dict["param_groups"] for key in group["params"]]
    wide = {
        item: copy.deepcopy(state_dict["state"][key])
        for item, key in zip(ours, theirs, strict=True)
        if item in masters and key in state_dict["state"]
    }
    return {**state, **wide}


def _tensors(meta: StateMeta, payload: memoryview) -> list[tuple[TensorMeta, torch.Tensor]]:
    tensors = []
    offset = 0
    for row in meta.tensors:
        tensor = torch.empty(row.shape, dtype=dtype_named(row.dtype))
        bytes_of(tensor)[:] = payload[offset : offset + row.nbytes]
        tensors.append((row, tensor))
        offset += row.nbytes
    return tensors


def _is_cut(item: BlockMemory, row: TensorMeta) -> bool:
    return len(row.shape) > 0 and math.prod(row.shape) == item.block.numel
