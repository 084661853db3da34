"""Every scheduler of torch drives the servers, also of a worker that joined later."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn, optim
from torch.optim import lr_scheduler

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.testing.rig import Rig
from tests.support.processes import wait_until
from tests.support.schedulers import SCHEDULERS, Make
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
)
from tests.support.wire import PATIENCE_S

ALL_SCHEDULERS = pytest.mark.parametrize("name", SCHEDULERS)
Rates = dict[int, list[float]]
"""By round, of each param group."""


def groups(model: nn.Module) -> list[dict[str, Any]]:
    first, _, last = model.children()
    return [
        {"params": list(first.parameters()), "lr": 0.005},
        {"params": list(last.parameters()), "weight_decay": 0.1},
    ]


def rates_of(optimizer: optim.Optimizer) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def scheduled_locally(make: Make, data: Any) -> tuple[nn.Module, list[list[float]]]:
    """The run in one process: its model, and the rates of each step."""
    model = network()
    optimizer = optim.SGD(groups(model), lr=0.001, momentum=0.9)
    scheduler = make(optimizer)
    rates = []
    for batch in data:
        rates.append(rates_of(optimizer))
        optimizer.zero_grad()
        loss = backward(model, batch)
        optimizer.step()
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(*([loss.detach()] if plateau else []))
    return model, rates


def joined(run: elasticps.Run, *, seed: int = 0) -> tuple[nn.Module, Any]:
    model = network(seed)
    return model, run.optimizer(model, "sgd", groups=groups(model), lr=0.001, momentum=0.9)


def follow(run: elasticps.Run, make: Make, *, epochs: int = 1, size: int = 60) -> Iterator[Any]:
    """Train with the scheduler kept at the job's round; gives rates after each step."""
    model, optimizer = joined(run)
    optimizer.catch_up(make(optimizer))
    for batch in run.data(dataset(size), batch_size=BATCH, epochs=epochs):
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
        yield model, run.round, rates_of(optimizer)


# -- as on the local optimizer ------------------------------------------------------------------

PLATEAU = {"ReduceLROnPlateau": lambda opt: lr_scheduler.ReduceLROnPlateau(opt, patience=0)}


@pytest.mark.parametrize("name", [*SCHEDULERS, *PLATEAU])
async def test_a_scheduler_works_as_on_the_local_optimizer(name: str) -> None:
    make = {**SCHEDULERS, **PLATEAU}[name]

    def script(run: elasticps.Run) -> nn.Module:
        model, optimizer = joined(run)
        scheduler = make(optimizer)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=2):
            optimizer.zero_grad()
            loss = backward(model, batch)
            optimizer.step()
            scheduler.step(*([loss.detach()] if name in PLATEAU else []))
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    assert_equal(model, scheduled_locally(make, batches(epochs=2))[0])


@ALL_SCHEDULERS
async def test_a_scheduler_that_follows_the_job_needs_no_steps_of_the_script(name: str) -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, list[list[float]]]:
        steps = list(follow(run, SCHEDULERS[name], epochs=2))
        return steps[-1][0], [rates for _, _, rates in steps]

    async with Rig() as rig:
        model, rates = await as_worker(rig, script)
    local, wanted = scheduled_locally(SCHEDULERS[name], batches(epochs=2))
    assert rates == wanted
    assert_equal(model, local)


# -- who was not there from the start -----------------------------------------------------------


@pytest.mark.parametrize("name", ["OneCycleLR", "ChainedScheduler", "MultiplicativeLR"])
async def test_who_joins_later_goes_on_with_the_rates_when_all_others_have_left(name: str) -> None:
    wanted, seen, told = (threading.Event() for _ in range(3))

    def script(run: elasticps.Run, uid: str) -> tuple[nn.Module, Rates]:
        found: Rates = {}
        for number, step in enumerate(follow(run, SCHEDULERS[name], epochs=3)):
            model, round_, rates = step
            found[round_] = rates
            if uid == "w1" and number == 4:
                wanted.set()
                wait_until(lambda: rig.ledger.joining)
            if uid == "w2" and number == 3:
                seen.set()
                told.wait(PATIENCE_S)
            if uid == "w1" and told.is_set():
                wait_until(lambda: run._agent.retiring)
        return model, found

    async with Rig() as rig:
        first = asyncio.create_task(as_worker(rig, lambda run: script(run, "w1"), "w1"))
        await asyncio.to_thread(wanted.wait, PATIENCE_S)
        second = asyncio.create_task(as_worker(rig, lambda run: script(run, "w2"), "w2"))
        await asyncio.to_thread(seen.wait, PATIENCE_S)
        rig.retire("w1")
        told.set()
        assert isinstance(await first, elasticps.WorkerRetired)
        model, found = await second
    local, rates = scheduled_locally(SCHEDULERS[name], batches(epochs=3))
    assert min(found) > 5
    assert max(found) == len(rates)
    assert found == {round_: rates[round_ - 1] for round_ in found}
    assert_equal(model, local, exactly=False)


async def test_rounds_without_samples_for_a_worker_do_not_hold_its_rates_back() -> None:
    def script(run: elasticps.Run) -> Rates:
        steps = follow(run, SCHEDULERS["ExponentialLR"], epochs=3, size=BATCH + 1)
        return {round_: rates for _, round_, rates in steps}

    async with Rig(start_workers=2) as rig:
        one, other = sorted(await as_workers(rig, 2, script), key=len, reverse=True)
    assert list(one) == [1, 2, 3, 4, 5, 6]
    assert other == {round_: one[round_] for round_ in (1, 3, 5)}


async def test_a_resumed_job_goes_on_with_the_rates_of_its_checkpoint(tmp_path: Path) -> None:
    make = SCHEDULERS["OneCycleLR"]

    def script(run: elasticps.Run, stop_at: int) -> tuple[nn.Module, Rates]:
        found: Rates = {}
        for step in follow(run, make, epochs=2):
            model, round_, found[round_] = step
            if round_ == stop_at:
                break
        return model, found

    saved = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 7}
    async with Rig(**saved) as rig:
        await as_worker(rig, lambda run: script(run, 7))
    async with Rig(resume=str(tmp_path)) as rig:
        model, found = await as_worker(rig, lambda run: script(run, 0))
    local, rates = scheduled_locally(make, batches(epochs=2))
    assert found == {round_: rates[round_ - 1] for round_ in range(8, len(rates) + 1)}
    assert_equal(model, local)


async def test_a_worker_with_a_clock_of_its_own_follows_that() -> None:
    def script(run: elasticps.Run) -> bool:
        model, optimizer = joined(run)
        scheduler = SCHEDULERS["ExponentialLR"](optimizer)
        optimizer.catch_up(scheduler)
        for number in range(6):
            backward(model, next(iter(batches())))
            optimizer.step()
            assert scheduler.last_epoch == number
        return True

    async with Rig(start_workers=2, consistency=Consistency.ASYNC) as rig:
        assert all(await as_workers(rig, 2, script))


async def test_who_joins_later_adopts_options_that_follow_from_losses() -> None:
    wanted = threading.Event()

    def first(run: elasticps.Run) -> None:
        model, optimizer = joined(run)
        for number, batch in enumerate(batches()):
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
            if number == 4:
                wanted.set()
                wait_until(lambda: rig.ledger.joining)
            backward(model, batch)
            optimizer.step()
            rates[run.round] = rates_of(optimizer)

    def second(run: elasticps.Run) -> tuple[int, list[float], Any]:
        _, optimizer = joined(run)
        plateau = lr_scheduler.ReduceLROnPlateau(optimizer)
        optimizer.adopt_options()
        return run.round, rates_of(optimizer), plateau

    rates: Rates = {}
    async with Rig() as rig:
        one = asyncio.create_task(as_worker(rig, first, "w1"))
        await asyncio.to_thread(wanted.wait, PATIENCE_S)
        round_, found, _ = await as_worker(rig, second, "w2")
        await one
    assert round_ == 5
    assert found == rates[5]


async def test_options_that_nobody_has_changed_are_adopted_as_they_are() -> None:
    def script(run: elasticps.Run) -> list[float]:
        _, optimizer = joined(run)
        optimizer.adopt_options()
        return rates_of(optimizer)

    async with Rig() as rig:
        assert await as_worker(rig, script) == [0.005, 0.001]
