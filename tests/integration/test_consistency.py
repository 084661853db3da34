"""Jobs whose workers do not wait for the slowest: bounded, asynchronous, with backup workers."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from random import Random
from typing import Any

import pytest

from elasticps.core.commands import Ready
from elasticps.core.ids import LEDGER, BlockId, ServerId
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed
from elasticps.testing.members import Member, together
from elasticps.testing.rig import Rig
from tests.support.bits import done
from tests.support.counted import ASYNC, CLOCKS, MODES, CountedJob, bounded
from tests.support.wire import eventually

clocks = pytest.mark.parametrize("mode", CLOCKS)


def waits(rig: Rig, member: Member) -> bool:
    """The ledger holds the member's vote until a slower one has caught up."""
    return member.id in rig.ledger.waiting


# -- bounded staleness --------------------------------------------------------------------------


class Pace:
    """Workers that step at random speeds, and what each of them may rely on."""

    def __init__(self, job: CountedJob, staleness: int | None, seed: int = 0) -> None:
        self._job = job
        self._staleness = staleness
        self._random = Random(seed)
        self._steps = {member.id: 0 for member in job.members}
        self.furthest = 0

    async def steps(self, member: Member, count: int) -> None:
        for _ in range(count):
            await asyncio.sleep(self._random.choice([0.0, 0.004]) * self._random.random())
            self._job.give(member)
            await self._job.push(member)
            self._steps[member.id] += 1
            commit = await member.exchange.vote()
            assert commit is not None
            self._admitted(commit)
            await self._job.read(member, commit)
            self._has_read(member, commit)

    def _admitted(self, commit: Commit) -> None:
        """A vote that was sent is the latest that a clock can have moved."""
        lead = commit.round - min(self._steps.values())
        self.furthest = max(self.furthest, lead)
        if self._staleness is not None:
            assert lead <= self._staleness

    def _has_read(self, member: Member, commit: Commit) -> None:
        for worker, seq in member.exchange._floor.items():
            assert self._job.sees(member, worker, seq)
        assert self._job.sees(member, member.id, commit.round)
        if self._staleness is not None:
            for other in self._steps:
                assert self._job.sees(member, other, commit.round - self._staleness)


@pytest.mark.parametrize("staleness", [0, 1, 3])
async def test_no_worker_is_ever_more_than_the_staleness_ahead_of_the_slowest(
    staleness: int,
) -> None:
    async with Rig(servers=2, start_workers=3, **bounded(staleness)) as rig:
        job = await CountedJob.begun(rig, 3)
        pace = Pace(job, staleness)
        await together(*(pace.steps(member, 25) for member in job.members))
        assert rig.ledger.round == 25
        await job.assert_whole()


@pytest.mark.parametrize("staleness", [0, 2])
async def test_the_fastest_goes_as_far_as_the_staleness_and_then_waits(staleness: int) -> None:
    async with Rig(servers=2, start_workers=2, **bounded(staleness)) as rig:
        job = await CountedJob.begun(rig, 2)
        fast, slow = job.members
        for _ in range(staleness):
            await job.step(fast)
        for _ in range(3):
            step = fast.start(job.step(fast))
            await eventually(lambda: waits(rig, fast))
            assert not step.done()
            assert rig.ledger.clocks[fast.id] - rig.ledger.clocks[slow.id] == staleness + 1
            await job.step(slow)
            await step
        await job.assert_whole()


@pytest.mark.parametrize("how", ["dies", "leaves"])
@pytest.mark.parametrize("staleness", [0, 2])
async def test_a_slow_worker_that_is_gone_releases_the_others(staleness: int, how: str) -> None:
    async with Rig(servers=2, start_workers=3, **bounded(staleness)) as rig:
        job = await CountedJob.begun(rig, 3)
        slow, *others = job.members
        for _ in range(staleness):
            await together(*(job.step(member) for member in others))
        steps = [member.start(job.step(member)) for member in others]
        await eventually(lambda: all(waits(rig, member) for member in others))
        if how == "dies":
            await job.kill(slow)
        else:
            job.members.remove(slow)
            await slow.exchange.leave()
        await together(*(done(step) for step in steps))
        await job.rounds(staleness + 2)
        await job.assert_whole()


async def test_a_worker_that_joins_begins_where_the_slowest_is() -> None:
    async with Rig(servers=2, start_workers=2, **bounded(1)) as rig:
        job = await CountedJob.begun(rig, 2)
        fast, slow = job.members
        for _ in range(3):
            await job.rounds(1)
        await job.step(fast)
        joiner = rig.worker(job.blueprint)
        await joiner.join()
        job.members.append(joiner)
        turn = joiner.exchange.member_turn
        assert (turn.round, turn.world) == (4, 3)
        assert all(job.sees(joiner, worker, 3) for worker in (fast.id, slow.id))
        step = fast.start(job.step(fast))
        await eventually(lambda: waits(rig, fast))
        await together(job.step(slow), job.step(joiner))
        await step
        await job.assert_whole()


# -- asynchronous -------------------------------------------------------------------------------


async def test_nobody_waits_for_a_stopped_worker() -> None:
    async with Rig(servers=2, start_workers=3, **ASYNC) as rig:
        job = await CountedJob.begun(rig, 3)
        stopped, *others = job.members
        pace = Pace(job, None)
        await together(*(pace.steps(member, 20) for member in others))
        assert rig.ledger.clocks[stopped.id] == 0
        assert pace.furthest == 20
        await job.step(stopped)
        assert all(job.sees(stopped, member.id, 20) for member in others)
        await job.assert_whole()


@clocks
async def test_who_is_not_in_step_cannot_be_called_together(mode: str) -> None:
    async with Rig(**CLOCKS[mode]) as rig:
        job = await CountedJob.begun(rig, 1)
        (member,) = job.members
        turn = member.exchange.member_turn
        with pytest.raises(JobFailed, match="only synchronous rounds"):
            await member.client.ledger(lambda me: Ready(me, turn.round, turn.generation))
        await job.rounds(1)
        await job.assert_whole()


# -- pushes that are applied at once, when servers die ------------------------------------------


def newest(job: CountedJob, server: ServerId, block: BlockId) -> bool:
    """Does the server's replica of the block have what every member has in hand?"""
    replica = job.rig.servers[server].parameter_block(block)._replica
    return replica.has({member.id: member.exchange._seq for member in job.members})


async def applied_here(job: CountedJob, victim: ServerId) -> list[Awaitable[Any]]:
    for server in job.rig.servers.values():
        for conn in server.connections_from(victim):
            conn.pause_reading()
    steps = [done(member.start(job.step(member))) for member in job.members]
    await eventually(lambda: all(newest(job, victim, block) for block in led_by(job, victim)))
    return [*steps]


async def applied_everywhere(job: CountedJob, victim: ServerId) -> list[Awaitable[Any]]:
    for conn in job.rig.servers[victim].server.peers._connections.values():
        conn.pause_reading()
    steps = [done(member.start(job.step(member))) for member in job.members]
    held = [
        (backup, block)
        for block in led_by(job, victim)
        for backup in job.rig.entries[block].in_sync
    ]
    await eventually(lambda: all(newest(job, backup, block) for backup, block in held))
    return [*steps]


async def acknowledged(job: CountedJob, victim: ServerId) -> list[Awaitable[Any]]:
    for member in job.members:
        job.give(member)
        await job.push(member)
    for block in job.blocks:
        assert all(newest(job, holder, block) for holder in job.rig.entries[block].holders)
    return [job.rest(member) for member in job.members]


async def admitted(job: CountedJob, victim: ServerId) -> list[Awaitable[Any]]:
    await asyncio.gather(*await acknowledged(job, victim))
    return [member.exchange.read() for member in job.members]


def led_by(job: CountedJob, server: ServerId) -> list[BlockId]:
    return [block for block in job.blocks if job.rig.entries[block].primary == server]


STAGES: dict[str, Callable[[CountedJob, ServerId], Awaitable[list[Awaitable[Any]]]]] = {
    "applied here alone": applied_here,
    "applied, not acknowledged": applied_everywhere,
    "acknowledged": acknowledged,
    "admitted": admitted,
}


@pytest.mark.parametrize("block", [LEDGER, BlockId(1)], ids=["ledger", "block"])
@pytest.mark.parametrize("stage", STAGES)
@clocks
async def test_a_primary_that_dies_loses_no_push_and_applies_none_twice(
    mode: str, stage: str, block: BlockId
) -> None:
    async with Rig(servers=3, start_workers=2, replicas=2, **CLOCKS[mode]) as rig:
        job = await CountedJob.begun(rig, 2)
        await job.rounds(1)
        victim = rig.entries[block].primary
        left = await STAGES[stage](job, victim)
        paused = [c for server in rig.servers.values() for c in server.connections_from(victim)]
        await rig.kill_server(victim)
        for conn in paused:
            if not conn.closed:
                conn.resume_reading()
        await asyncio.gather(*left)
        for member in job.members:
            assert all(job.sees(member, member.id, 2) for _ in job.blocks)
        await job.rounds(2)
        await job.assert_whole()


class Disasters:
    """Workers that step until they are told to stop, and what happens to them meanwhile."""

    def __init__(self, job: CountedJob, seed: int) -> None:
        self._job = job
        self._rig = job.rig
        self._random = Random(seed)
        self._stopped = False
        self._tasks: dict[Member, asyncio.Task[None]] = {}
        for member in job.members:
            self._start(member)

    def _start(self, member: Member) -> None:
        self._tasks[member] = member.start(self._live(member))

    async def _live(self, member: Member) -> None:
        while not self._stopped:
            await self._job.step(member)
            await asyncio.sleep(0.004 * self._random.random())
        await member.exchange.leave()

    def _failed(self) -> bool:
        ended = [task for task in self._tasks.values() if task.done() and not task.cancelled()]
        return any(task.exception() for task in ended)

    async def _eventually(self, condition: Callable[[], bool]) -> None:
        await eventually(lambda: self._failed() or condition())
        if self._failed():
            await self._end()

    async def _progress(self) -> None:
        """Everybody goes on after whatever has happened."""
        numbered = self._job.numbered
        goals = {one: len(numbered.get(one.id, [])) + 3 for one in self._job.members}
        await self._eventually(
            lambda: all(len(numbered.get(one.id, [])) >= goal for one, goal in goals.items())
        )

    async def happen(self, times: int) -> None:
        acts = [self._server, self._ledger, self._worker, self._both, self._cut]
        for _ in range(times):
            for act in self._random.sample(acts, len(acts)):
                await self._eventually(self._job.has_heirs)
                await act()
                await self._progress()
        self._stopped = True
        await self._end()

    async def _end(self) -> None:
        living = [self._tasks[member] for member in self._job.members]
        await together(*(done(task) for task in living))

    async def _server(self) -> None:
        await self._kill(self._random.choice(sorted(self._rig.servers)))

    async def _ledger(self) -> None:
        await self._kill(self._rig.entries[LEDGER].primary)

    async def _kill(self, server: ServerId) -> None:
        await self._rig.kill_server(server)
        await self._rig.start_server()

    async def _worker(self) -> None:
        await self._job.kill(self._random.choice(self._job.members))
        await self._join()

    async def _both(self) -> None:
        server = self._random.choice(sorted(self._rig.servers))
        victim = self._random.choice(self._job.members)
        await asyncio.gather(self._kill(server), self._job.kill(victim))
        await self._join()

    async def _join(self) -> None:
        joiner = self._rig.worker(self._job.blueprint)
        await joiner.join()
        self._job.members.append(joiner)
        self._start(joiner)

    async def _cut(self) -> None:
        for server in self._rig.servers.values():
            server.cut()


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("mode", MODES)
async def test_every_push_counts_once_whoever_dies(mode: str, seed: int) -> None:
    async with Rig(servers=3, start_workers=3, replicas=2, **MODES[mode]) as rig:
        job = await CountedJob.begun(rig, 3)
        await Disasters(job, seed).happen(2)
        assert len(job.one_hots.pushes) > 50
        await job.assert_whole()
