"""A model's parameters as blocks: which memory is pushed, and where pulled values land."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from elasticps.api.pipeline import has_room, is_absent
from elasticps.core.blocks import (
    MOST_UNTRAINED,
    Block,
    Hyperparameters,
    Model,
    Parameter,
    Untrained,
    check_model,
    partition,
)
from elasticps.errors import UsageError
from elasticps.wire.messages import StateMeta, TensorMeta
from elasticps.wire.tensors import bytes_of, dtype_name
from elasticps.worker.untrained import fingerprint

ParamGroup = dict[str, Any]


@dataclass(frozen=True, slots=True)
class BlockMemory:
    """One block and its parameter. ``at_once``: its pushes are in no rounds.

    ``master``: the servers keep it, and the state of its optimizer, in float32.
    """

    block: Block
    parameter: torch.Tensor
    group: int
    at_once: bool = False
    master: bool = False

    @property
    def is_held(self) -> bool:
        """Is the parameter's value in this worker's memory?"""
        return has_room(self.parameter)

    @property
    def value(self) -> memoryview:
        """The block's bytes within the parameter, to be read and written in place."""
        return self.of(self.parameter)

    def outgoing(self, updates: Mapping[int, torch.Tensor] | None) -> torch.Tensor | None:
        """The block's part of its parameter's update, flat; None when there is none.

        ``updates`` are by the parameter's index in the model, None stands for the gradients.
        """
        index = self.block.parameter
        update = self.parameter.grad if updates is None else updates.get(index)
        if update is None:
            return None
        if update.is_sparse:
            raise UsageError("sparse gradients are not supported", field="grad")
        if update.requires_grad:
            update = update.detach()
        flat = update.contiguous().view(-1)
        block = self.block
        return flat if flat.numel() == block.numel else flat[block.start : block.stop]

    def initial(self) -> tuple[StateMeta, memoryview]:
        """The block's present value as the first state of the block."""
        if not self.is_held:
            raise UsageError("a part of the model is in other workers alone", field="pipeline")
        value = self.value
        dtype = dtype_name(self.parameter.dtype)
        rows = (TensorMeta("value", dtype, (self.block.numel,), self.block.nbytes),)
        return StateMeta(tensors=rows), value

    def of(self, tensor: torch.Tensor) -> memoryview:
        """The block's bytes within a contiguous tensor like its parameter."""
        width = tensor.element_size()
        return bytes_of(tensor)[self.block.start * width : self.block.stop * width]


def describe(
    named: Sequence[tuple[str, torch.Tensor]],
    groups: Sequence[ParamGroup],
    *,
    optimizer: str,
    options: Hyperparameters,
    elementwise: bool,
    block_bytes: int,
    untrained: Sequence[Untrained] = (),
    at_once: Collection[str] = (),
    masters: Collection[str] = (),
) -> Model:
    """The job's model as the servers must know it. Raises UsageError naming what cannot be.

    ``masters`` are parameters of which they keep float32 copies.
    """
    group_of = {id(p): index for index, group in enumerate(groups) for p in group["params"]}
    if group_of.keys() - {id(tensor) for _, tensor in named}:
        raise UsageError(
            "a param group holds a tensor that is no parameter of the model, or needs no gradient",
            field="groups",
        )
    parameters = []
    for name, tensor in named:
        _check(name, tensor)
        if id(tensor) in group_of:
            parameters.append(
                Parameter(
                    name=name,
                    shape=tuple(tensor.shape),
                    dtype=dtype_name(tensor.dtype),
                    group=group_of[id(tensor)],
                    at_once=name in at_once,
                    master=name in masters,
                )
            )
    model = Model(
        parameters=tuple(parameters),
        optimizer=optimizer,
        options=plain(options),
        groups=tuple(plain(group) for group in groups),
        elementwise=elementwise,
        block_bytes=block_bytes,
        untrained=fingerprint(untrained),
        untrained_rows=tuple(untrained[:MOST_UNTRAINED]),
    )
    check_model(model)
    return model


def _check(name: str, tensor: torch.Tensor) -> None:
    if tensor.device.type not in ("cpu", "cuda") and not is_absent(tensor):
        raise UsageError(
            f"parameter {name} is on {tensor.device}", field="device", limit="cpu, cuda"
        )
    if not (tensor.is_contiguous() or is_absent(tensor)):
        raise UsageError(
            f"parameter {name} is not contiguous in memory",
            field="stride",
            limit="torch.contiguous_format",
            hint="model.to(memory_format=torch.contiguous_format), before run.optimizer",
        )


def plain(group: ParamGroup) -> Hyperparameters:
    """A group's options as plain numbers, without its tensors. Raises UsageError for others."""
    options: Hyperparameters = {}
    for key, item in group.items():
        if key in ("params", "param_names"):
            continue
        if torch.is_tensor(item) and item.numel() == 1:
            item = item.item()
        # Tuples become lists on the wire; compared as lists, both sides see the same.
        item = list(item) if isinstance(item, tuple) else item
        if not _is_plain(item):
            raise UsageError(
                f"option {key} is a {type(item).__name__}",
                field=key,
                limit="numbers, booleans, None, text and tuples of them",
            )
        options[key] = item
    return options


def _is_plain(item: object) -> bool:
    if isinstance(item, list):
        return all(_is_plain(part) for part in item)
    return isinstance(item, int | float | bool | str | None)


def memory_of(model: Model, tensors: Sequence[torch.Tensor]) -> list[BlockMemory]:
    """Every block of ``model`` with its parameter, in block order."""
    rows = model.parameters
    return [
        BlockMemory(
            block,
            tensors[block.parameter],
            rows[block.parameter].group,
            rows[block.parameter].at_once,
            rows[block.parameter].master,
        )
        for block in partition(model)
    ]
