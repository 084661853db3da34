"""Which samples a job reads, in every consistency: all of them, and once where that is promised."""

from __future__ import annotations

import asyncio
from collections import Counter
from random import Random

import pytest

from elasticps.api.plugins import DATA_POLICIES
from elasticps.core.commands import Ready
from elasticps.core.ids import LEDGER
from elasticps.core.lending import DYNAMIC, STATIC
from elasticps.core.ranges import DataSpec
from elasticps.errors import JobFailed
from elasticps.testing.members import Member, together
from elasticps.testing.rig import Rig
from tests.support.bits import done
from tests.support.checkers import Outcome
from tests.support.counted import BACKUP, CLOCKS, MODES, CountedJob
from tests.support.distributions import Install, install
from tests.support.wire import eventually

__all__ = ["install"]

DATA = DataSpec(size=41, batch_size=6, epochs=3, seed=0)
EVERYTHING = Counter(dict.fromkeys(range(DATA.size * DATA.epochs), 1))


class Reading:
    """Workers that read all the data, and the samples that each of their pushes was made of."""

    def __init__(self, job: CountedJob, seed: int = 0) -> None:
        self.samples: dict[int, list[int]] = {}
        self._job = job
        self._random = Random(seed)

    async def all_of_it(self, member: Member, pause_s: float = 0.004) -> None:
        exchange = member.exchange
        await exchange.register(DATA)
        while not exchange.member_turn.exhausted:
            await asyncio.sleep(pause_s * self._random.random())
            await self.round(member)
        await exchange.leave()

    async def round(self, member: Member) -> None:
        samples = samples_of(member)
        if samples:
            self.samples[len(self._job.one_hots.pushes)] = samples
            await self._job.step(member)
        else:
            await member.exchange.abstain()

    def read(self) -> Counter[int]:
        """The samples that the blocks have, as often as they have them."""
        block = self._job.members[0].values()[0]
        found: Counter[int] = Counter()
        for place, samples in self.samples.items():
            if float(block[place]) != 0.0:
                found.update(samples)
        return found


def samples_of(member: Member) -> list[int]:
    samples = member.exchange.member_turn.samples
    return [position for part in samples for position in range(part.start, part.stop)]


@pytest.mark.parametrize("data_policy", [DYNAMIC, STATIC])
@pytest.mark.parametrize("mode", MODES)
async def test_every_sample_is_read_once_when_nobody_dies(mode: str, data_policy: str) -> None:
    async with Rig(servers=2, start_workers=3, data_policy=data_policy, **MODES[mode]) as rig:
        job = await CountedJob.begun(rig, 3)
        reading = Reading(job)
        pauses = zip(job.members, [0.0, 0.002, 0.02], strict=True)
        await together(*(reading.all_of_it(member, pause_s) for member, pause_s in pauses))
        await job.assert_whole()
        assert reading.read() == EVERYTHING


@pytest.mark.parametrize("data_policy", [DYNAMIC, STATIC])
@pytest.mark.parametrize("mode", MODES)
async def test_every_sample_is_read_whoever_dies_and_once_in_whole_rounds(
    mode: str, data_policy: str
) -> None:
    job_wide = {"data_policy": data_policy, **MODES[mode]}
    async with Rig(servers=3, start_workers=3, replicas=2, **job_wide) as rig:
        job = await CountedJob.begun(rig, 3)
        reading = Reading(job)
        tasks = {member: member.start(reading.all_of_it(member)) for member in job.members}
        for number in (1, 2, 3):
            await eventually(lambda: len(reading.samples) > 12 * number)  # noqa: B023
            await eventually(job.has_heirs)
            ledger = rig.entries[LEDGER].primary
            await asyncio.gather(job.kill(job.members[0]), rig.kill_server(ledger))
            await rig.start_server()
            joiner = rig.worker(job.blueprint)
            await joiner.join()
            job.members.append(joiner)
            tasks[joiner] = joiner.start(reading.all_of_it(joiner))
        await together(*(done(tasks[member]) for member in job.members))
        await job.assert_whole()
        if job.in_rounds:
            assert reading.read() == EVERYTHING
        else:
            assert reading.read().keys() == EVERYTHING.keys()


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_data_policy_that_raises_fails_its_job_by_name_and_the_server_serves_on(
    mode: str, install: Install
) -> None:
    source = """
        from elasticps import DataPolicy

        class Broken(DataPolicy):
            def lend(self, asked):
                raise ZeroDivisionError("shares of nobody")
    """
    install("acme-data", "acme_data", source, {DATA_POLICIES: {"broken": "acme_data:Broken"}})
    job_wide = {"data_policy": "broken", **MODES[mode]}
    async with Rig(servers=2, start_workers=2, replicas=2, **job_wide) as rig:
        job = await CountedJob.begun(rig, 2)
        for member in job.members:
            with pytest.raises(JobFailed, match="data policy broken: ZeroDivisionError: shares"):
                await member.exchange.register(DATA)
            await member.exchange.read()


@pytest.mark.parametrize("mode", ["bounded", "async"])
async def test_who_joins_when_all_is_lent_waits_for_what_may_come_back(mode: str) -> None:
    async with Rig(servers=2, start_workers=2, **CLOCKS[mode]) as rig:
        job = await CountedJob.begun(rig, 2)
        spec = DataSpec(size=2, batch_size=2, epochs=1, seed=0)
        for member in job.members:
            assert len((await member.exchange.register(spec)).samples) == 1
        idle = rig.worker(job.blueprint)
        await idle.join()
        assert not (await idle.exchange.register(spec)).samples
        waiting = idle.start(idle.exchange.abstain())
        await eventually(lambda: idle.id in rig.ledger.waiting)
        dying, other = job.members
        await job.kill(dying)
        await waiting
        assert len(idle.exchange.member_turn.samples) == 1
        job.members.append(idle)
        await job.rounds(1)
        assert all(member.exchange.member_turn.exhausted for member in (other, idle))
        await job.assert_whole()


# -- backup workers -----------------------------------------------------------------------------


async def test_a_slow_worker_does_not_hold_up_rounds_and_its_samples_are_lent_again() -> None:
    async with Rig(servers=2, start_workers=3, **BACKUP) as rig:
        job = await CountedJob.begun(rig, 3)
        slow, *fast = job.members
        reading = Reading(job)
        for member in job.members:
            await member.exchange.register(DATA)
        assert samples_of(slow)
        for _ in range(5):
            await together(*(reading.round(member) for member in fast))
            contributors = rig.ledger.last.contributors
            assert set(contributors) == {member.id for member in fast}
        await reading.round(slow)
        assert job.in_hand[slow].outcome is Outcome.REFUSED
        assert slow.exchange.member_turn.round == 6
        await together(*(reading.all_of_it(member) for member in job.members))
        await job.assert_whole()
        assert reading.read() == EVERYTHING


async def test_a_called_worker_that_dies_is_not_waited_for() -> None:
    async with Rig(servers=2, start_workers=3, **BACKUP) as rig:
        job = await CountedJob.begun(rig, 3)
        one, dying, other = job.members
        turn = dying.exchange.member_turn
        ready = dying.start(dying.client.ledger(lambda me: Ready(me, turn.round, turn.generation)))
        await eventually(lambda: bool(rig.ledger.ready))
        step = one.start(job.step(one))
        await ready
        await eventually(lambda: job.all_hold_back(one))
        assert not step.done()
        await job.kill(dying)
        assert (await step).contributors == (one.id,)
        await job.step(other)
        await job.rounds(2)
        await job.assert_whole()


async def test_a_called_worker_whose_round_was_made_without_it_is_told_so() -> None:
    async with Rig(servers=2, start_workers=3, **BACKUP) as rig:
        job = await CountedJob.begun(rig, 3)
        late, dying, other = job.members
        for member in (late, dying):
            job.give(member)
        await together(job.push(late), job.push(dying))
        await job.kill(dying)
        assert (await job.step(other)).contributors == (other.id,)
        await job.rest(late)
        assert job.in_hand[late].outcome is Outcome.REFUSED
        await job.rounds(2)
        await job.assert_whole()
