"""What every strategy plugin must do, in a job of real shard servers, a ledger and sockets."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

import elasticps
from elasticps.testing.kit import Case, ContractBroken, Subject, require
from elasticps.testing.rig import Rig
from elasticps.testing.scripts import Died, as_worker, loss_of, network, samples, stepped_by
from elasticps.testing.waiting import eventually
from elasticps.worker.exchange import Exchange

LIMIT_S = 60.0
"""For one job; it is only ever used up by a strategy that waits for what never comes."""
ROUNDS = 8
BATCH = 8
SIZE = 64
LEARNING_RATE = 0.05
DATA = samples(SIZE)


def _job(subject: Subject, workers: int, body: Callable[[Rig], Coroutine[Any, Any, Any]]) -> Any:
    """What ``body`` returns, in a job of this strategy that begins with so many workers."""

    async def run() -> Any:
        async with Rig(start_workers=workers, strategy=subject.text) as rig:
            try:
                async with asyncio.timeout(LIMIT_S):
                    return await body(rig)
            except TimeoutError:
                raise ContractBroken(f"the job did not end within {LIMIT_S:g} s") from None

    return asyncio.run(run())


def _begun(run: elasticps.Run) -> tuple[nn.Module, Callable[[Any], None]]:
    """A model, and what takes a step with a batch."""
    model = network()
    return model, stepped_by(run, model, "sgd", lr=LEARNING_RATE)


def _span(subject: Subject) -> int:
    """Steps a round, and so how many of them make ``ROUNDS`` rounds."""
    span = subject.load().steps_per_round
    require(isinstance(span, int) and span >= 1, f"steps_per_round is {span!r}")
    return int(span)


def _batches(seed: int = 0) -> Iterator[Any]:
    """Batches without end; no data set of the job's, so that each worker may stop when it likes."""
    random = torch.Generator().manual_seed(seed)
    while True:
        yield DATA[torch.randperm(SIZE, generator=random)[:BATCH]]


def _trained(run: elasticps.Run, steps: int, seed: int = 0) -> list[torch.Tensor]:
    model, step = _begun(run)
    for batch in itertools.islice(_batches(seed), steps):
        step(batch)
    run.close()
    return [item.detach().clone() for item in model.parameters()]


def says_how_many_steps_a_round_has(subject: Subject) -> None:
    """A whole number from 1: a worker is lent the samples of so many steps at a time."""
    _span(subject)


# -- training -----------------------------------------------------------------------------------


def two_workers_learn_from_all_samples(subject: Subject) -> None:
    """Reading ``run.data`` to its end, the loss falls in every worker, and all samples are read."""
    epochs = max(2, ROUNDS * _span(subject) * BATCH // SIZE)
    ahead = loss_of(network(), DATA[:]).item()

    def script(run: elasticps.Run) -> tuple[float, bool]:
        model, step = _begun(run)
        for batch in run.data(DATA, batch_size=BATCH, epochs=epochs):
            step(batch)
        exhausted = run.turn.exhausted
        run.close()
        return loss_of(model, DATA[:]).item(), exhausted

    async def body(rig: Rig) -> list[Any]:
        return await asyncio.gather(*(as_worker(rig, uid, script) for uid in "ab"))

    for loss, exhausted in _job(subject, 2, body):
        require(loss < ahead, f"after {epochs} epochs the loss is {loss:.4g}, it was {ahead:.4g}")
        require(exhausted, "a worker stopped before the samples were all read")


def fixed_run_is_repeatable(subject: Subject) -> None:
    """One worker with the same seeds gets the same bits; unless ``repeatable`` is False."""
    if not getattr(subject.load(), "repeatable", True):
        return
    steps = ROUNDS * _span(subject)
    runs = [
        _job(subject, 1, lambda rig: as_worker(rig, "a", lambda run: _trained(run, steps)))
        for _ in range(2)
    ]
    same = all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    require(same, f"two runs of {steps} steps that began equal ended with other bits")


# -- membership ---------------------------------------------------------------------------------


def worker_that_joins_later_takes_part(subject: Subject) -> None:
    """A second worker joins a job that has begun, and both train on."""
    span, joined = _span(subject), threading.Event()

    def first(run: elasticps.Run) -> bool:
        _, step = _begun(run)
        together = 0
        for batch in _batches():
            step(batch)
            together += run.world == 2
            if together >= 2 * span or (joined.is_set() and run.world == 1):
                return together > 0
        raise AssertionError("batches have no end")

    def second(run: elasticps.Run) -> None:
        _, step = _begun(run)
        for batch in itertools.islice(_batches(1), 2 * span):
            step(batch)
        joined.set()

    async def body(rig: Rig) -> bool:
        began = asyncio.create_task(as_worker(rig, "a", first))
        await asyncio.wait({began}, timeout=0.2)
        await as_worker(rig, "b", second)
        return bool(await began)

    require(_job(subject, 1, body), "the two workers were never members of one round")


def worker_that_is_asked_to_leave_leaves(subject: Subject) -> None:
    """It ends at the end of a round, in order, and the other trains on."""
    span = _span(subject)

    def script(run: elasticps.Run) -> None:
        _, step = _begun(run)
        for batch in _batches():
            step(batch)

    async def body(rig: Rig) -> list[Any]:
        stays = asyncio.create_task(
            as_worker(rig, "a", lambda run: _trained(run, 2 * ROUNDS * span))
        )
        leaves = asyncio.create_task(as_worker(rig, "b", script))
        await eventually(lambda: "b" in rig.progress or leaves.done())
        if not leaves.done():
            rig.retire("b")
        return [await leaves, await stays]

    end, _ = _job(subject, 2, body)
    require(isinstance(end, elasticps.WorkerRetired), f"it did not leave, but ended with {end!r}")


# -- death --------------------------------------------------------------------------------------


@contextmanager
def _killed_at(run: elasticps.Run, call: str, after: int) -> Iterator[None]:
    """The worker dies where its exchange comes to ``call`` once it has done so many rounds."""
    exchange = run._membership.exchange
    real = getattr(Exchange, call)
    counted = itertools.count()

    async def dies(*args: Any, **options: Any) -> Any:
        if next(counted) >= after:
            raise Died(f"killed at {call}")
        return await real(exchange, *args, **options)

    setattr(exchange, call, dies)
    yield


def _survives(subject: Subject, call: str) -> None:
    """Of two workers one dies at ``call`` of its third round; the other finishes its steps."""
    steps = ROUNDS * _span(subject)

    def dies(run: elasticps.Run) -> None:
        _, step = _begun(run)
        with _killed_at(run, call, after=2):
            for batch in itertools.islice(_batches(1), steps):
                step(batch)

    async def body(rig: Rig) -> Any:
        return await asyncio.gather(
            as_worker(rig, "a", lambda run: _trained(run, steps)), as_worker(rig, "b", dies)
        )

    values, _ = _job(subject, 2, body)
    require(all(bool(item.isfinite().all()) for item in values), "the survivor's values are lost")


def peer_that_dies_before_it_pushes_is_survived(subject: Subject) -> None:
    """The others push again, without it."""
    _survives(subject, "push")


def peer_that_dies_between_push_and_vote_is_survived(subject: Subject) -> None:
    """What it had pushed is dropped, and the others push again."""
    _survives(subject, "vote")


def peer_that_dies_after_its_vote_is_survived(subject: Subject) -> None:
    """The round counts it; the one after does not wait for it."""
    _survives(subject, "pull")


# -- speed --------------------------------------------------------------------------------------


def throughput(subject: Subject) -> str:
    """Steps a second and bytes a step of two workers, to be compared on one machine."""
    steps = 4 * ROUNDS * _span(subject)

    def script(run: elasticps.Run) -> tuple[float, float]:
        _, step = _begun(run)
        began = time.perf_counter()
        for batch in itertools.islice(_batches(), steps):
            step(batch)
        exchange = run._membership.exchange
        moved = exchange.encoder.pushed_bytes + exchange.bytes_pulled
        return steps / (time.perf_counter() - began), moved / steps

    async def body(rig: Rig) -> list[Any]:
        return await asyncio.gather(*(as_worker(rig, uid, script) for uid in "ab"))

    rates = _job(subject, 2, body)
    pace = min(rate for rate, _ in rates)
    return f"{pace:.0f} steps/s a worker, {rates[0][1]:.0f} bytes a step (2 workers, 1 process)"


CASES = (
    Case(check=says_how_many_steps_a_round_has, quick=True),
    Case(check=two_workers_learn_from_all_samples),
    Case(check=fixed_run_is_repeatable),
    Case(check=worker_that_joins_later_takes_part),
    Case(check=worker_that_is_asked_to_leave_leaves),
    Case(check=peer_that_dies_before_it_pushes_is_survived),
    Case(check=peer_that_dies_between_push_and_vote_is_survived),
    Case(check=peer_that_dies_after_its_vote_is_survived),
    Case(check=throughput),
)
