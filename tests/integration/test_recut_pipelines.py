"""Stages that die, join and leave while a pipeline trains: cut anew, no sample lost or repeated."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.strategies.stage import StageGroup
from elasticps.testing.rig import Rig
from elasticps.testing.scripts import Died
from elasticps.testing.waiting import eventually
from tests.support.pipelines import alone, in_stages, layers, numbered
from tests.support.processes import wait_until
from tests.support.scripts import as_worker

SIZE, BATCH, EPOCHS = 60, 8, 3


class Rounds:
    """Which samples the job's rounds were made of, as those who were told that they count say."""

    def __init__(self, make: Callable[[], nn.Sequential] = layers) -> None:
        self.make = make
        self.of: defaultdict[int, list[int]] = defaultdict(list)
        self.worlds: list[int] = []

    def train(self, run: elasticps.Run, before_step: Callable[[int], None]) -> nn.Module:
        model = self.make()
        pipeline, optimizer = in_stages(run, model, "sgd", lr=0.02, momentum=0.9)
        for numbers, inputs, targets in run.data(numbered(SIZE), batch_size=BATCH, epochs=EPOCHS):
            optimizer.zero_grad()
            before_step(run.round)
            pipeline.forward_backward(inputs, targets)
            before = run.round
            try:
                optimizer.step()
            finally:
                if run.round > before:
                    self.of[run.round] += numbers.tolist()
            self.worlds.append(run.world)
        return model

    def check(self, models: list[nn.Module]) -> None:
        """Every sample once an epoch, and the end of one process that reads the same batches."""
        read = Counter(number for numbers in self.of.values() for number in numbers)
        assert read == Counter(dict.fromkeys(range(SIZE), EPOCHS))
        data = numbered(SIZE)
        local = self.make()
        optimizer = optim.SGD(local.parameters(), lr=0.02, momentum=0.9)
        alone(local, optimizer, [data[self.of[at]][1:] for at in sorted(self.of)])
        for model in models:
            for mine, its in zip(model.parameters(), local.parameters(), strict=True):
                torch.testing.assert_close(mine, its, rtol=0, atol=1e-4)


def killed_in_its_stage(monkeypatch: pytest.MonkeyPatch, stage: int, call: str) -> threading.Event:
    """From when the event is set, the next worker that comes to ``call`` in ``stage`` dies."""
    armed = threading.Event()
    real = getattr(StageGroup, call)

    def dies(self: StageGroup, *given: Any) -> Any:
        if armed.is_set() and self._stage == stage:
            armed.clear()
            raise Died(f"killed at {call}")
        return real(self, *given)

    monkeypatch.setattr(StageGroup, call, dies)
    return armed


def member(rig: Rig, uid: str, script: Callable[[elasticps.Run], Any]) -> asyncio.Task[Any]:
    async def life() -> Any:
        try:
            return await as_worker(rig, script, uid)
        except Died as end:
            return end

    return asyncio.create_task(life())


@pytest.mark.parametrize("call", ["send", "recv"])
@pytest.mark.parametrize("stage", [0, 1, 2])
async def test_a_stage_that_dies_within_a_pass_costs_no_sample(
    monkeypatch: pytest.MonkeyPatch, stage: int, call: str
) -> None:
    rounds = Rounds()
    armed = killed_in_its_stage(monkeypatch, stage, call)

    def script(run: elasticps.Run) -> nn.Module:
        return rounds.train(run, lambda at: armed.set() if at == 9 and run.world == 3 else None)

    async with Rig(start_workers=3, strategy="model-parallel") as rig:
        results = [await task for task in [member(rig, f"w{n}", script) for n in range(3)]]
    ends = [result for result in results if isinstance(result, Died)]
    assert len(ends) == 1
    assert {2, 3} == set(rounds.worlds)
    rounds.check([result for result in results if not isinstance(result, Died)])


@pytest.mark.parametrize("call", ["push", "vote", "pull"])
async def test_a_stage_that_dies_outside_of_a_pass_costs_no_sample(call: str) -> None:
    """``pull``: once the round counts it, the one after is begun by the others."""
    rounds = Rounds()

    def script(run: elasticps.Run, *, dies: bool) -> nn.Module:
        def before_step(at: int) -> None:
            if dies and at == 9:
                exchange = run._membership.exchange

                async def killed(*_: Any, **__: Any) -> Any:
                    raise Died(f"killed at {call}")

                setattr(exchange, {"pull": "read"}.get(call, call), killed)

        return rounds.train(run, before_step)

    async with Rig(start_workers=2, strategy="model-parallel") as rig:
        one = member(rig, "w0", lambda run: script(run, dies=False))
        other = member(rig, "w1", lambda run: script(run, dies=True))
        assert isinstance(await other, Died)
        rounds.check([await one])


@pytest.mark.parametrize("stages", [0, 2])
async def test_who_joins_is_given_a_stage(stages: int) -> None:
    """From two stages to three; from one pipeline to two in which four are."""
    rounds = Rounds()
    joining = threading.Event()
    more = 1 if stages == 0 else 2

    def script(run: elasticps.Run, *, waits: bool) -> nn.Module:
        def before_step(at: int) -> None:
            if waits and at == 9:
                joining.set()
                wait_until(lambda: len(rig.ledger.joining) == more)

        return rounds.train(run, before_step)

    async with Rig(start_workers=2, strategy=f"model-parallel:stages={stages}") as rig:
        tasks = [
            member(rig, "w0", lambda run: script(run, waits=True)),
            member(rig, "w1", lambda run: script(run, waits=False)),
        ]
        await asyncio.to_thread(joining.wait)
        tasks += [
            member(rig, f"w{n + 2}", lambda run: script(run, waits=False)) for n in range(more)
        ]
        results = [await task for task in tasks]
    assert set(rounds.worlds) == {2, 2 + more}
    rounds.check(results)


async def test_who_is_asked_to_leave_leaves_its_stage_to_the_others() -> None:
    rounds, loop = Rounds(), asyncio.get_running_loop()

    def script(run: elasticps.Run, uid: str) -> nn.Module:
        def before_step(at: int) -> None:
            if run.rank == 1 and at == 9:
                loop.call_soon_threadsafe(rig.retire, uid)
                wait_until(lambda: run._agent.retiring is not None)

        return rounds.train(run, before_step)

    async with Rig(start_workers=3, strategy="model-parallel") as rig:
        tasks = [member(rig, f"w{n}", lambda run, n=n: script(run, f"w{n}")) for n in range(3)]  # type: ignore[misc]
        results = [await task for task in tasks]
    stayed = [result for result in results if isinstance(result, nn.Module)]
    assert len(stayed) == 2
    assert set(rounds.worlds) == {2, 3}
    rounds.check(stayed)


# -- too few for the model ----------------------------------------------------------------------


def wide() -> nn.Sequential:
    """4.2 MiB, as a stage counts its parameters: two workers may have 3 MiB each."""
    hidden = (nn.Linear(300, 300) for _ in range(4))
    model = nn.Sequential(nn.Linear(6, 300), *hidden, nn.Linear(300, 1))
    random = torch.Generator().manual_seed(0)  # workers are threads here, and draw side by side
    with torch.no_grad():
        for item in model.parameters():
            item.copy_(torch.randn(item.shape, generator=random) * 0.04)
    return model


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.long)])
async def test_who_cannot_hold_the_model_waits_for_another_and_says_so(dies: int) -> None:
    """It is seated in the middle of the round, which is begun anew with the samples of before."""
    rounds = Rounds(wide)

    def script(run: elasticps.Run, *, joins: bool) -> nn.Module:
        def before_step(at: int) -> None:
            if at == 9 and run.rank == dies and not joins:
                raise Died("killed before its step")

        return rounds.train(run, before_step)

    async with Rig(start_workers=2, strategy="model-parallel:memory=3") as rig:
        tasks = [member(rig, f"w{n}", lambda run: script(run, joins=False)) for n in range(2)]
        ended, going = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        assert [type(task.result()) for task in ended] == [Died]

        def waits() -> bool:
            return any("no cut of 4 MiB" in told.waits_for for told in rig.progress.values())

        await eventually(waits)
        assert not any(task.done() for task in going)
        joiner = member(rig, "w2", lambda run: script(run, joins=True))
        models = [await task for task in (*going, joiner)]
    assert all(isinstance(model, nn.Module) for model in models)
    assert not any(told.waits_for for uid, told in rig.progress.items() if uid != f"w{dies}")
    rounds.check(models)


async def test_of_two_pipelines_one_goes_on_when_a_stage_dies_and_no_worker_is_spare() -> None:
    rounds = Rounds()

    def script(run: elasticps.Run) -> nn.Module:
        def before_step(at: int) -> None:
            if at == 9 and run.world == 4 and run.rank == 3:
                raise Died("killed before its step")

        return rounds.train(run, before_step)

    async with Rig(start_workers=4, strategy="model-parallel:stages=2") as rig:
        results = [await task for task in [member(rig, f"w{n}", script) for n in range(4)]]
    assert {3, 4} == set(rounds.worlds)
    rounds.check([result for result in results if isinstance(result, nn.Module)])
