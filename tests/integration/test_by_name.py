"""Several strategies in one job, by the parameters' names: over real sockets, in threads."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from itertools import product
from typing import Any

import pytest
import torch
from torch import nn

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.errors import JobFailed
from elasticps.testing.rig import Rig
from elasticps.testing.waiting import eventually
from tests.support.cases import short_are
from tests.support.parts import DENSE_AND_REST, LOCAL, Recorded, alone, dies_at, numbered, trained
from tests.support.processes import wait_until
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    dataset,
    network,
    train,
)

LONG = pytest.mark.long


# -- all-reduce for one part, data-parallel for another -----------------------------------------


@pytest.mark.parametrize(
    ("name", "count"),
    short_are(("sgd", 1), ("adamw", 2), ("adafactor", 3), of=product(LOCAL, (1, 2, 3))),
)
async def test_all_reduce_and_data_parallel_equal_the_local_run(name: str, count: int) -> None:
    async with Rig(start_workers=count, strategy=DENSE_AND_REST, audit=True) as rig:
        models = await as_workers(rig, count, trained(name, epochs=2))
        verdicts = await rig.verdicts(count)
    for model in models:
        assert_equal(model, alone(name, epochs=2), exactly=False)
        assert_equal(model, models[0])
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


@pytest.mark.parametrize("strategy", [DENSE_AND_REST, "0.*=data-parallel; *=all-reduce"])
async def test_who_joins_has_both_parts_and_every_sample_is_read_once(strategy: str) -> None:
    """The joiner gets the momentum of the part that steps in the workers."""
    joining = threading.Event()

    def waits(run: elasticps.Run) -> None:
        if run.steps == 12 and run.rank == 0 and not joining.is_set():
            joining.set()
            wait_until(lambda: rig.ledger.joining)

    async with Rig(start_workers=2, strategy=strategy) as rig:
        recorded = Recorded(epochs=6)
        first = [
            asyncio.create_task(as_worker(rig, lambda run: recorded.run(run, waits), f"w{n}"))
            for n in range(2)
        ]
        await asyncio.to_thread(joining.wait)
        third = asyncio.create_task(as_worker(rig, recorded.run, "w2"))
        models = [await task for task in (*first, third)]
    assert recorded.counts() == Counter(dict.fromkeys(range(60), 6))
    assert set(recorded.worlds) == {2, 3}
    for model in models:
        assert_equal(model, models[0])
        assert_equal(model, recorded.replayed(), exactly=False)


REST_AND_DENSE, BOTH = "0.*=data-parallel; *=all-reduce", "0.*=all-reduce; *=all-reduce"


@pytest.mark.parametrize(
    ("strategy", "call"),
    short_are(
        (DENSE_AND_REST, "sum"),
        (DENSE_AND_REST, "read"),
        (REST_AND_DENSE, "push"),
        (BOTH, "vote"),
        of=product((DENSE_AND_REST, REST_AND_DENSE, BOTH), ("sum", "push", "vote", "read")),
    ),
)
async def test_a_death_in_mid_round_leaves_both_parts_whole(strategy: str, call: str) -> None:
    """Before it has summed, pushed or voted, and before it has read what it voted for."""

    def dying(run: elasticps.Run) -> None:
        recorded.run(run, lambda run: dies_at(run, call) if run.steps == 9 else None)

    async with Rig(start_workers=3, strategy=strategy) as rig:
        recorded = Recorded(epochs=4)
        ends = await asyncio.gather(
            as_worker(rig, recorded.run, "w0"),
            as_worker(rig, recorded.run, "w1"),
            as_worker(rig, dying, "w2"),
            return_exceptions=True,
        )
    models = [end for end in ends if isinstance(end, nn.Module)]
    if call == "read":  # the round counts it, and it has not noted what it had
        missing = Counter(dict.fromkeys(range(60), 4)) - recorded.counts()
        recorded.used[9] += list(missing.elements())
    assert recorded.counts() == Counter(dict.fromkeys(range(60), 4))
    assert len(models) == 2
    for model in models:
        assert_equal(model, models[0])
        assert_equal(model, recorded.replayed(), exactly=False)


# -- parts whose rounds have several steps ------------------------------------------------------


async def test_a_part_that_averages_seldom_steps_beside_one_that_is_in_step() -> None:
    """With one worker local SGD's average is what it has: the run is the local one."""
    async with Rig(strategy="0.*=local-sgd:h=4; *=data-parallel", audit=True) as rig:
        model = await as_worker(rig, trained("sgd", epochs=2))
        await eventually(lambda: len(rig.finished) == 1)
        (finished,) = rig.finished.values()
    assert finished.verdict is not None
    assert (finished.verdict.lost, finished.verdict.duplicated) == (0, 0)
    assert_equal(model, alone("sgd", epochs=2), exactly=False)


async def test_workers_average_one_part_each_fourth_round_and_the_other_in_each() -> None:
    """Held against the same in one process: two models, of which parts are made equal."""
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    used: dict[tuple[int, int], torch.Tensor] = {}

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for numbers, *batch in run.data(numbered(), batch_size=10, epochs=4):
            optimizer.zero_grad()
            backward(model, batch)
            here = run.rank, run.round
            used[here] = numbers
            optimizer.step()
            seen[here] = [item.detach().clone() for item in model.parameters()]

    async with Rig(start_workers=2, strategy="0.*=local-sgd:h=4; *=data-parallel") as rig:
        await as_workers(rig, 2, script)
    models = [network(), network()]
    for round_ in range(24):
        for rank, model in enumerate(models):
            model.zero_grad()
            backward(model, dataset()[used[rank, round_]])
        step_of_two(models, averages=(round_ + 1) % 4 == 0)
        for rank, model in enumerate(models):
            for item, wanted in zip(seen[rank, round_], model.parameters(), strict=True):
                torch.testing.assert_close(item, wanted, rtol=0, atol=1e-5)


@torch.no_grad()
def step_of_two(models: list[nn.Module], *, averages: bool) -> None:
    """SGD on both models: the first layers by themselves, the last ones by their mean gradient."""
    for index, pair in enumerate(zip(*(model.parameters() for model in models), strict=True)):
        gradients = [item.grad for item in pair if item.grad is not None]
        for item, gradient in zip(pair, gradients, strict=True):
            item.sub_(gradient if index < 2 else sum(gradients) / 2, alpha=0.01)
        if averages:
            mean = sum(item.clone() for item in pair) / 2
            for item in pair:
                item.copy_(mean)


@pytest.mark.parametrize(
    ("strategy", "job"),
    [
        ("0.*=local-sgd:h=3,outer=nesterov; *=all-reduce:publish_every=4", {}),
        ("0.*=gossip:publish_every=7; *=data-parallel", {}),
        pytest.param("0.*=local-sgd:h=4; *=data-parallel", {}, marks=LONG),
        pytest.param("0.*=local-sgd:h=4,fragments=2; *=local-sgd:h=6", {}, marks=LONG),
        pytest.param("0.*=elastic-averaging:h=4; *=data-parallel", {}, marks=LONG),
        pytest.param("0.*=gossip:publish_every=7; *=all-reduce:publish_every=5", {}, marks=LONG),
        ("0.*=local-sgd:h=4; *=data-parallel", {"consistency": Consistency.ASYNC}),
        ("0.*=data-parallel; *=local-sgd:h=1", {"backup_workers": 1}),
    ],
)
async def test_workers_that_join_and_die_leave_one_model(strategy: str, job: Any) -> None:
    """After the last round all workers have the same, and no sample is left out."""
    joining = threading.Event()

    def waits(run: elasticps.Run) -> None:
        if run.steps == 9 and not joining.is_set():
            joining.set()
            if not job:
                wait_until(lambda: rig.ledger.joining)

    def dying(run: elasticps.Run) -> None:
        recorded.run(run, lambda run: dies_at(run, "vote") if run.steps == 7 else None)

    async with Rig(start_workers=2, strategy=strategy, **job) as rig:
        recorded = Recorded(epochs=12, lr=0.003)
        first = [
            asyncio.create_task(as_worker(rig, lambda run: recorded.run(run, waits), f"w{n}"))
            for n in range(2)
        ]
        await asyncio.to_thread(joining.wait)
        third = asyncio.create_task(as_worker(rig, dying, "w2"))
        models = [await task for task in first]
        with pytest.raises(JobFailed):
            await third
    counts = recorded.counts()
    if not job:
        assert max(counts.values()) == 12
        assert sum(counts.values()) >= 12 * 60 - 7 * BATCH
        assert_equal(models[0], models[1])
    inputs, targets = dataset()[:]
    first, last = (nn.functional.mse_loss(each(inputs), targets) for each in (network(), models[0]))
    assert last < first / 4


async def test_a_worker_without_samples_in_a_round_loses_no_progress() -> None:
    """Rounds of 2 samples among 3 workers: whoever has none goes on from where it was."""

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        train(model, optimizer, run.data(dataset(20), batch_size=2, epochs=3))
        return model

    strategy = "0.*=local-sgd:h=2; *=data-parallel"
    async with Rig(start_workers=3, strategy=strategy, audit=True) as rig:
        models = await as_workers(rig, 3, script)
        verdicts = await rig.verdicts(3)
    for model in models:
        assert_equal(model, models[0])
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)
