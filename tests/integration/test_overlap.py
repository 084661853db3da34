"""Exchange beside computing: the same training, and refused where it could not be."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.core.audit import Verdict
from elasticps.core.consistency import Consistency
from elasticps.core.ids import BlockId
from elasticps.errors import UsageError
from elasticps.server.parameter_block import ParameterBlock
from elasticps.testing.rig import Rig
from tests.support.processes import wait_until
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
    train,
)


def pushes(rig: Rig) -> int:
    """How many have come to the primaries of all blocks."""
    hosted = [rig.primary(block).replica(block) for block in rig.entries if block]
    return sum(each.pushes for each in hosted if isinstance(each, ParameterBlock))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize(
    "overlap",
    [
        {"overlap_backward": True},
        {"overlap_forward": True},
        {"overlap_backward": True, "overlap_forward": True},
    ],
)
@pytest.mark.parametrize("wishes", [{}, {"clip_grad_norm": 0.5}])
async def test_a_script_comes_to_what_its_local_run_comes_to(
    count: int, wishes: dict[str, Any], overlap: dict[str, bool]
) -> None:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01, **overlap, **wishes)
        optimizer.catch_up(optim.lr_scheduler.StepLR(optimizer, 3))
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=2))
        return copy.deepcopy(model)

    async with Rig(start_workers=count, audit=True) as rig:
        models = await as_workers(rig, count, script)
        blocks = len(rig.entries) - 1
    local = network()
    optimizer = optim.AdamW(local.parameters(), lr=0.01)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 3)
    for batch in batches(epochs=2):
        optimizer.zero_grad()
        backward(local, batch)
        if wishes:
            nn.utils.clip_grad_norm_(local.parameters(), wishes["clip_grad_norm"])
        optimizer.step()
        scheduler.step()
    for model in models:
        assert_equal(model, local, exactly=count == 1 and not wishes)
        assert_equal(model, models[0])
    verdicts = [finished.verdict for finished in rig.finished.values()]
    assert verdicts == [Verdict(blocks * len(list(batches(epochs=2))))] * count


async def test_gradients_have_come_before_the_step_and_are_in_no_value_yet() -> None:
    async with Rig() as rig:

        def script(run: elasticps.Run) -> None:
            model = network()
            optimizer = run.optimizer(model, "sgd", lr=0.1, overlap_backward=True)
            for number, batch in enumerate(batches(), start=1):
                before = [item.detach().clone() for item in model.parameters()]
                optimizer.zero_grad()
                backward(model, batch)
                due = number * (len(rig.entries) - 1)
                wait_until(lambda due=due: pushes(rig) == due)
                run._training.read_values()
                assert all(map(torch.equal, model.parameters(), before))
                optimizer.step()
                assert not any(map(torch.equal, model.parameters(), before))

        await as_worker(rig, script)


class Wide(nn.Module):
    """Two hundred parameters, whose gradients come in the order that the worker wishes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.parts = nn.ModuleList(nn.Linear(3, 1, bias=False) for _ in range(200))

    def forward(self, inputs: torch.Tensor, *, backwards: bool) -> torch.Tensor:
        parts = list(self.parts)[:: -1 if backwards else 1]
        total = torch.zeros(1)
        for part in parts:
            total = (total + part(inputs)).sin()
        return total.sum()


async def test_workers_that_make_their_gradients_in_other_orders_do_not_wait_for_each_other() -> (
    None
):
    """More blocks than may be under way at a time, and each push waits for the other worker's."""

    def script(run: elasticps.Run) -> nn.Module:
        model = Wide()
        optimizer = run.optimizer(model, "sgd", lr=0.1, overlap_backward=True)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.ones(3), backwards=run.rank == 0).backward()
            optimizer.step()
        return model

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    assert_equal(one, other)


async def test_a_worker_that_leaves_between_backward_and_step_takes_its_gradient_along() -> None:
    """The others' round is made anew without it, and is whole."""
    left = threading.Event()

    def leaver(run: elasticps.Run) -> None:
        model = nn.Linear(1, 1, bias=False)
        optimizer = run.optimizer(model, "sgd", lr=1.0, overlap_backward=True)
        assert isinstance(optimizer, optim.Optimizer)
        (model.weight * 100).sum().backward()

    def stayer(run: elasticps.Run) -> list[float]:
        model = nn.Linear(1, 1, bias=False)
        optimizer = run.optimizer(model, "sgd", lr=1.0, overlap_backward=True)
        seen = []
        for _ in range(3):
            optimizer.zero_grad()
            before = model.weight.item()
            model.weight.sum().backward()
            optimizer.step()
            seen.append(before - model.weight.item())
        left.set()
        return seen

    async with Rig(start_workers=2) as rig:
        staying = asyncio.create_task(as_worker(rig, stayer, "w1"))
        await as_worker(rig, leaver, "w2")
        assert await staying == pytest.approx([1.0, 1.0, 1.0], abs=1e-6)
    assert left.is_set()


def clipped_by_hand(model: nn.Module, optimizer: optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)


def clipped_behind_torch(model: nn.Module, optimizer: optim.Optimizer) -> None:
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.data.mul_(0.5)


def accumulated(model: nn.Module, optimizer: optim.Optimizer) -> None:
    backward(model, next(batches()))


def without_gradients(model: nn.Module, optimizer: optim.Optimizer) -> None:
    optimizer.zero_grad()


def another_rate(model: nn.Module, optimizer: optim.Optimizer) -> None:
    optimizer.param_groups[0]["lr"] = 0.5


@pytest.mark.parametrize(
    "change",
    [clipped_by_hand, clipped_behind_torch, accumulated, without_gradients, another_rate],
)
async def test_what_changes_after_it_has_left_is_refused(
    change: Callable[[nn.Module, optim.Optimizer], None],
) -> None:
    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.1, overlap_backward=True)
        backward(model, next(batches()))
        change(model, optimizer)
        with pytest.raises(UsageError, match="after backward had sent") as refused:
            optimizer.step()
        assert refused.value.field == "overlap_backward"

    async with Rig() as rig:
        await as_worker(rig, script)
        hosted = rig.primary(BlockId(1)).replica(BlockId(1))
        assert hosted is not None
        assert hosted.replication.version <= 2  # the first value and what is prepared


@pytest.mark.parametrize(
    "job",
    [
        {"consistency": Consistency.ASYNC},
        {"strategy": "local-sgd:h=4"},
        {"backup_workers": 1, "start_workers": 2},
    ],
)
async def test_a_job_whose_steps_are_no_rounds_of_all_is_refused(job: dict[str, Any]) -> None:
    def script(run: elasticps.Run) -> None:
        for field in ("overlap_backward", "overlap_forward"):
            with pytest.raises(UsageError, match=field):
                run.optimizer(network(), "sgd", lr=0.1, **{field: True})

    async with Rig(**job) as rig:
        await as_worker(rig, script)


async def test_a_step_returns_before_the_values_are_there_and_nobody_sees_the_old_ones() -> None:
    """The shard server's answers are held up on the worker's loop; the model is read meanwhile."""
    late = threading.Event()

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.1, overlap_forward=True)
        local = copy.deepcopy(model)
        local_optimizer = optim.SGD(local.parameters(), lr=0.1)
        read, exchange = run._membership.exchange.read, run._membership.exchange

        async def read_late(into: Any = None) -> None:
            await asyncio.to_thread(late.wait)
            await read(into)

        exchange.read = read_late  # type: ignore[method-assign]
        held = [item.clone() for item in model.parameters()]
        optimizer.zero_grad()
        for batch in batches():
            backward(local, batch)
            local_optimizer.step()
            local_optimizer.zero_grad()
            late.set()
            backward(model, batch)
            late.clear()
            optimizer.step()
            optimizer.zero_grad()
        unguarded = [item for group in optimizer.param_groups for item in group["params"]]
        assert not any(map(torch.equal, unguarded, local.parameters()))
        late.set()
        optimizer.wait_for_values()
        assert all(map(torch.equal, unguarded, local.parameters()))
        assert not any(map(torch.equal, held, model.parameters()))

    async with Rig() as rig:
        await as_worker(rig, script)
