"""A step beside the event loop: nobody meets its block half stepped, and nothing is kept of it."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn

from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.core.blocks import partition
from elasticps.server.aside import StepsAside
from elasticps.server.compute import Share
from elasticps.server.piecewise import PIECE_NUMEL
from elasticps.server.tensor_block import TensorBlock
from elasticps.worker.parameters import describe

NUMEL = PIECE_NUMEL + 777


@pytest.fixture
def aside() -> Iterator[StepsAside]:
    with closing(StepsAside()) as made:
        yield made


def values(seed: int) -> torch.Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def block_of(name: str, options: dict[str, Any]) -> tuple[TensorBlock, torch.optim.Optimizer]:
    """A block, and the optimizer that steps the same parameter as a whole."""
    plugin = load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]
    parameter = nn.Parameter(values(1))
    local = plugin.create([{"params": [parameter]}], options)
    model = describe(
        [("p", parameter)],
        local.param_groups,
        optimizer=name,
        options=options,
        elementwise=plugin.elementwise,
        block_bytes=4 << 20,
    )
    (block,) = partition(model)
    made = TensorBlock(block, model.parameters[0], model, plugin)
    made.value.copy_(parameter.detach())
    return made, local


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sgd", {"lr": 0.1}),
        ("sgd", {"lr": 0.1, "weight_decay": 0.1}),
        ("sgd", {"lr": 0.1, "momentum": 0.9}),
        ("adamw", {"lr": 0.01}),
    ],
)
async def test_a_step_aside_is_that_of_the_whole_to_the_bit(
    name: str, options: dict[str, Any], aside: StepsAside
) -> None:
    made, local = block_of(name, options)
    (parameter,) = local.param_groups[0]["params"]
    for step in range(4):
        parameter.grad = values(10 + step)
        local.step()
        reader = made.value_bytes()
        before = bytes(reader)
        share = made.begin(values(10 + step), {}, in_one=True)
        assert share is not None
        made.leave_to(aside.begin(share, lambda: None))
        assert torch.equal(made.value, parameter.detach())
        assert bytes(reader) == before
    state, own = local.state[parameter], made.optimizer.state.get(made.value, {})
    for key, item in state.items():
        assert item is None if own[key] is None else torch.equal(item, own[key])


async def test_who_needs_the_numbers_waits_for_what_is_under_way_and_does_the_rest(
    aside: StepsAside,
) -> None:
    made, _ = block_of("sgd", {"lr": 0.1})
    begun, told = threading.Event(), asyncio.Event()
    ended: list[Exception | None] = []
    by: list[str] = []

    def work(_: int, piece: int) -> None:
        by.append(threading.current_thread().name)
        if piece == 0:
            begun.wait(10)
        else:
            begun.set()  # by the loop's thread, while the other is in the middle of the first

    made.leave_to(aside.begin(Share(2, work, ended.append), told.set))
    while not by:
        await asyncio.sleep(0)
    assert made.is_stepping
    assert made.value is not None
    assert ended == [None]
    assert by == ["elasticps-step", threading.current_thread().name]
    await asyncio.wait_for(told.wait(), 10)
    assert not made.is_stepping


async def test_what_a_step_aside_raises_is_told_and_the_next_is_made(aside: StepsAside) -> None:
    def fail(_: int, __: int) -> None:
        raise ValueError("broken")

    ended: list[Exception | None] = []
    for work in (fail, lambda _, __: None):
        made, _ = block_of("sgd", {"lr": 0.1})
        made.leave_to(aside.begin(Share(1, work, ended.append), lambda: None))
        made.end_step()
    assert isinstance(ended[0], ValueError)
    assert ended[1:] == [None]


async def test_a_step_that_is_made_keeps_no_gradient(aside: StepsAside) -> None:
    made, _ = block_of("sgd", {"lr": 0.1})
    told = asyncio.Event()
    gradient = values(3)
    gone = weakref.ref(gradient)
    share = made.begin(gradient, {}, in_one=True)
    assert share is not None
    made.leave_to(aside.begin(share, told.set))
    del gradient, share
    await asyncio.wait_for(told.wait(), 10)
    made.end_step()
    # The thread lets go of it right after it has told.
    aside.close()
    assert gone() is None
