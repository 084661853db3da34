"""One optimizer step over many small blocks, with torch's kernels for lists of tensors.

A block's own optimizer costs far more than the arithmetic on a few numbers. Blocks of one param
group whose options are equal are stepped by one optimizer that stands in for theirs: it works on
their values and their states, which stay where they are. Each number comes out as from the block's
own optimizer, bit for bit: the kernels for lists take the same operations in the same order (but
for half precision, which they round elsewhere: such blocks are stepped one by one). Lists are
short enough for a core's cache, and shared out to the server's threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from elasticps.core.blocks import Hyperparameters
from elasticps.errors import PluginError
from elasticps.server.bare_step import bare_step
from elasticps.server.compute import ComputeThreads, Share, raised
from elasticps.server.gradient_mean import Mean, wholes
from elasticps.server.tensor_block import TensorBlock

SMALL_BYTES = 512 * 1024
"""Blocks up to this size are stepped together: of larger ones the arithmetic is what costs."""
JOINT_BYTES = 1024 * 1024
"""Of values in one list: its temporary tensors are as large."""

EXACT = frozenset({torch.float32, torch.float64})

JOINT: frozenset[type[torch.optim.Optimizer]] = frozenset(
    {
        torch.optim.SGD,
        torch.optim.Adam,
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.Adadelta,
        torch.optim.Adamax,
        torch.optim.Rprop,
    }
)
"""Those whose two ways of a step are the same to the bit; a test holds each against the other."""


@dataclass(frozen=True, slots=True)
class Due:
    """A block's step that is to be made; ``into`` get the bytes of the value."""

    block: TensorBlock
    gradient: torch.Tensor | Mean
    hyper: Hyperparameters
    into: Sequence[torch.Tensor] = ()


def is_joint(block: TensorBlock) -> bool:
    """May the block be stepped with others?"""
    options = block.options_in_use
    return (
        block.nbytes <= SMALL_BYTES
        and block.dtype in EXACT
        and block.gives_pieces  # coding a value is work for a block by itself
        and type(block.optimizer) in JOINT
        and options.get("foreach") is None
        and not options.get("capturable")
        and not options.get("differentiable")
    )


def step_together(due: Sequence[Due], threads: ComputeThreads) -> None:
    """One step of each block, all of one param group and ``is_joint``.

    Raises PluginError where the optimizer fails: the values have no meaning then.
    """
    threads.share_out_each([share_of(due)])


def share_of(due: Sequence[Due]) -> Share:
    """The same, for threads to share out."""
    for item in due:
        item.block.use(item.hyper)
        item.block.leave_to_readers()
        item.block.leave_pieces()
    lists = list(_lists(due))
    return Share(len(lists), lambda _, number: _step(lists[number]), raised)


def _lists(due: Sequence[Due]) -> Iterator[list[Due]]:
    """Neighbours whose options are equal, up to so many bytes."""
    for _, run in groupby(due, key=lambda item: item.hyper):
        steps: list[Due] = []
        nbytes = 0
        for item in run:
            if steps and nbytes + item.block.nbytes > JOINT_BYTES:
                yield steps
                steps, nbytes = [], 0
            steps.append(item)
            nbytes += item.block.nbytes
        yield steps


def _step(due: Sequence[Due]) -> None:
    values = [item.block.value for item in due]
    joint = due[0].block.stand_in(values)
    states = joint.state
    for item in due:
        own = item.block.optimizer.state
        if own:
            states[item.block.value] = own[item.block.value]
    try:
        for item, gradient in zip(due, _gradients(due), strict=True):
            item.block.value.grad = gradient
        bare_step(joint)
    except Exception as error:  # as in a step of one block
        raise PluginError(
            f"step() failed on {len(due)} blocks from {due[0].block.block.id} on: "
            f"{type(error).__name__}: {error}",
            where=type(joint).__name__,
        ) from error
    finally:
        for item in due:
            item.block.value.grad = None
    for item in due:
        item.block.optimizer.state[item.block.value] = states[item.block.value]
    targets = [target for item in due for target in item.into]
    if targets:
        values = [value.detach().reshape(-1).view(torch.uint8) for value in values]
        sources = [value for item, value in zip(due, values, strict=True) for _ in item.into]
        torch._foreach_copy_(targets, sources)


def _gradients(due: Sequence[Due]) -> Iterator[torch.Tensor]:
    """Each one's, summed; those of the same workers, as most are, together."""
    for _, run in groupby(due, key=lambda item: _weights(item.gradient)):
        given = [item.gradient for item in run]
        means = [each for each in given if isinstance(each, Mean)]
        if len(means) > 1:
            yield from wholes(means)
        else:
            yield from (each.whole if isinstance(each, Mean) else each for each in given)


def _weights(gradient: torch.Tensor | Mean) -> tuple[object, ...] | None:
    return gradient.weights if isinstance(gradient, Mean) else None
