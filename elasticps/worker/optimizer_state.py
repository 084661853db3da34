"""Optimizer state in its two forms: by block as servers hold it, by parameter as torch does."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from elasticps.core.blocks import Hyperparameters
from elasticps.wire.messages import StateMeta, TensorMeta
from elasticps.wire.tensors import bytes_of, dtype_name, dtype_named
from elasticps.worker.parameters import BlockMemory

VALUE = "value"
States = Sequence[tuple[StateMeta, memoryview]]


def by_parameter(memory: Sequence[BlockMemory], states: States) -> dict[torch.Tensor, Any]:
    """Assemble each parameter's state from its blocks'.

    A tensor with an element for each of the block's is cut by blocks; any other (a step count)
    is the same in all of a parameter's blocks.
    """
    whole: dict[torch.Tensor, Any] = {}
    for item, (meta, payload) in zip(memory, states, strict=True):
        parameter = item.parameter
        state = whole.setdefault(parameter, {})
        state.update(meta.scalars)
        for row, tensor in _tensors(meta, payload):
            if row.key == VALUE:
                continue
            if _is_cut(item, row):
                full = state.setdefault(row.key, torch.empty(parameter.shape, dtype=tensor.dtype))
                full.view(-1)[item.block.start : item.block.stop] = tensor.view(-1)
            else:
                state[row.key] = tensor
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
    """Cut each parameter's state into its blocks', each with the parameter's present value."""
    return [_block_state(item, state.get(item.parameter, {})) for item in memory]


def _block_state(item: BlockMemory, state: Mapping[str, Any]) -> tuple[StateMeta, memoryview]:
    rows: list[TensorMeta] = []
    pieces: list[memoryview] = []
    scalars: Hyperparameters = {}
    first, value = item.initial()
    rows.extend(first.tensors)
    pieces.append(value)
    for key, entry in state.items():
        if not torch.is_tensor(entry):
            scalars[key] = entry
            continue
        tensor = entry.detach().contiguous()
        if tensor.shape == item.parameter.shape and tensor.dim() > 0:
            tensor = tensor.view(-1)[item.block.start : item.block.stop]
        rows.append(TensorMeta(key, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.nbytes))
        pieces.append(bytes_of(tensor))
    return StateMeta(tensors=tuple(rows), scalars=scalars), memoryview(b"".join(pieces))


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
