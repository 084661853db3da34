"""The strategy ``auto`` trains as ``data-parallel`` does, to the bit, and says what it measured."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
import torch

import elasticps
from elasticps.core.choices import CANDIDATES, CODECS
from elasticps.core.consistency import Consistency
from elasticps.core.cost import Costs, Setting, predict
from elasticps.core.measured import DONE, from_metrics
from elasticps.errors import UsageError
from elasticps.strategies.auto import STEPS
from elasticps.testing.rig import Rig
from elasticps.testing.scripts import Died, as_worker, network, samples, step

DATA = samples(64)
ROUNDS = 12


def trained(run: elasticps.Run, steps: int = ROUNDS) -> list[torch.Tensor]:
    """The parameters after so many steps with momentum, on the same batches in every worker."""
    model = network()
    optimizer = run.optimizer(model, "sgd", lr=0.05, momentum=0.9)
    for start in range(steps):
        step(model, optimizer, DATA[4 * start : 4 * start + 4])
    run.close()
    return [item.detach().clone() for item in model.parameters()]


async def numbers(strategy: str, workers: int) -> tuple[Any, dict[str, float]]:
    async with Rig(start_workers=workers, strategy=strategy) as rig:
        uids = "abc"[:workers]
        values = await asyncio.gather(*(as_worker(rig, uid, trained) for uid in uids))
        return values, rig.progress["a"].metrics


@pytest.mark.parametrize("workers", [1, 3])
async def test_the_parameters_are_those_of_data_parallel_to_the_bit(workers: int) -> None:
    (mine, *others), metrics = await numbers("auto", workers)
    (theirs, *_), none = await numbers("data-parallel", workers)
    assert all(torch.equal(one, other) for one, other in zip(mine, theirs, strict=True))
    assert all(
        torch.equal(one, other) for more in others for one, other in zip(mine, more, strict=True)
    )
    assert from_metrics(none) is None
    assert metrics[DONE] == 1.0


@pytest.mark.parametrize("workers", [1, 2])
async def test_what_is_measured_is_enough_to_predict_every_choice(workers: int) -> None:
    _, metrics = await numbers("auto", workers)
    measured = from_metrics(metrics)
    assert measured is not None
    assert (measured.workers, measured.steps) == (workers, STEPS + 1)
    assert measured.model_bytes == sum(item.nbytes for item in network().parameters())
    assert set(measured.codecs) == set(CODECS)
    assert (measured.bytes_per_s > 0) == (workers > 1)
    assert min(measured.compute_s, measured.exchange_s, measured.vote_s, measured.pull_s) > 0
    setting = Setting(nodes=workers, replicas=2, largest_block_bytes=4096)
    for candidate in CANDIDATES:
        assert predict(Costs(measured, setting), candidate).step_s > measured.compute_s


async def test_reading_data_all_samples_are_read_while_it_measures() -> None:
    def script(run: elasticps.Run) -> bool:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.05)
        for batch in run.data(DATA, batch_size=4, epochs=2):
            step(model, optimizer, batch)
        return run.turn.exhausted

    async with Rig(start_workers=2, strategy="auto") as rig:
        ends = await asyncio.gather(*(as_worker(rig, uid, script) for uid in "ab"))
        assert all(ends)
        assert from_metrics(rig.progress["a"].metrics) is not None


# Not 0: a group whose making a death breaks off keeps its sockets until gloo gives up (60 s).
@pytest.mark.parametrize("after", range(1, 4))
async def test_a_death_while_it_measures_ends_the_measuring_alone(after: int) -> None:
    def dies(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.05, momentum=0.9)
        for taken in itertools.count():
            if taken == after:
                raise Died("killed")
            step(model, optimizer, DATA[:4])

    async with Rig(start_workers=2, strategy="auto") as rig:
        values, _ = await asyncio.gather(as_worker(rig, "a", trained), as_worker(rig, "b", dies))
        assert all(bool(item.isfinite().all()) for item in values)
        assert rig.progress["a"].metrics[DONE] == 1.0


async def test_where_there_are_no_whole_rounds_it_is_refused() -> None:
    async with Rig(strategy="auto", consistency=Consistency.ASYNC) as rig:
        with pytest.raises(UsageError, match="whole rounds"):
            await as_worker(rig, "a", trained)
