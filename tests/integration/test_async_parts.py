"""A part of a job by name whose pushes are applied when they come."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

import elasticps
from elasticps.errors import JobFailed, UsageError
from elasticps.server.parameter_block import ParameterBlock
from elasticps.testing.rig import Rig
from elasticps.testing.waiting import eventually
from tests.support.parts import Recorded, alone, dies_at, trained
from tests.support.scripts import as_worker, as_workers, assert_equal, dataset, network, train

ASYNC_REST = "0.*=all-reduce:publish_every=5; *=data-parallel:consistency=async"


@pytest.mark.parametrize(
    "strategy",
    [
        ASYNC_REST,
        "0.*=data-parallel; *=data-parallel:consistency=async",
        "0.*=local-sgd:h=4; *=data-parallel:consistency=async",
        "data-parallel:consistency=async",
    ],
)
async def test_one_workers_async_part_is_the_local_run(strategy: str) -> None:
    async with Rig(strategy=strategy, audit=True) as rig:
        model = await as_worker(rig, trained("sgd", epochs=2))
        await eventually(lambda: len(rig.finished) == 1)
        (finished,) = rig.finished.values()
    verdict = finished.verdict
    assert verdict is not None
    assert verdict.acknowledged > 0
    assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert_equal(model, alone("sgd", epochs=2), exactly=False)


async def test_between_two_rounds_the_async_part_is_pushed_to_in_each_step() -> None:
    """Its workers wait for each other as seldom as the other part's rounds are."""

    def script(run: elasticps.Run) -> tuple[int, int]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.003)
        train(model, optimizer, run.data(dataset(), batch_size=10, epochs=4))
        return run.steps, run.round

    strategy = "0.*=local-sgd:h=4; *=data-parallel:consistency=async"
    async with Rig(start_workers=2, strategy=strategy, audit=True) as rig:
        results = await as_workers(rig, 2, script)
        blocks = [rig.primary(block).replica(block) for block in rig.entries if block]
        rows = [block._replica for block in blocks if isinstance(block, ParameterBlock)]
        applied = [sum(row.tally.count for row in each.applied.values()) for each in rows]
        in_rounds = [each.in_rounds for each in rows]
    assert results == [(24, 8), (24, 8)]
    for count, is_in_rounds in zip(applied, in_rounds, strict=True):
        assert count == (2 * 8 if is_in_rounds else 2 * 24)


@pytest.mark.parametrize("call", ["sum", "vote", "push_at_once"])
async def test_no_async_push_is_lost_or_doubled_when_a_worker_and_a_server_die(call: str) -> None:
    """The round begins anew, in a new generation: what was applied at once is not pushed again."""
    fallen = threading.Event()

    def dies(run: elasticps.Run) -> None:
        if run.steps == 9:
            dies_at(run, call)
            fallen.set()

    async with Rig(3, start_workers=3, strategy=ASYNC_REST, audit=True, replicas=2) as rig:
        recorded = Recorded(epochs=8, lr=0.003)
        staying = [
            asyncio.create_task(as_worker(rig, recorded.run, f"w{number}")) for number in range(2)
        ]
        dying = asyncio.create_task(as_worker(rig, lambda run: recorded.run(run, dies), "w2"))
        await asyncio.to_thread(fallen.wait)
        last = max(rig.entries)
        await rig.kill_server(rig.entries[last].primary)
        models = [await task for task in staying]
        with pytest.raises(JobFailed):
            await dying
        verdicts = await rig.verdicts(2)
    assert len(verdicts) == 2
    for verdict in verdicts:
        assert (verdict.lost, verdict.duplicated) == (0, 0)
    assert recorded.counts() == Counter(dict.fromkeys(range(60), 8))
    assert_equal(models[0], models[1])


@pytest.mark.parametrize(
    ("job", "field"),
    [({"checkpoint_dir": "/saved"}, "checkpoint_dir"), ({"backup_workers": 1}, "backup_workers")],
)
async def test_an_async_part_is_refused_where_a_round_must_be_all(job: Any, field: str) -> None:
    strategy = "0.*=data-parallel; *=data-parallel:consistency=async"
    async with Rig(strategy=strategy, **job) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, trained("sgd", epochs=1))
    assert caught.value.field == field
