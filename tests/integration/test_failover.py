"""Servers and workers that die in the middle of a round: nothing is lost, nothing counts twice."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from elasticps.core.ids import LEDGER, BlockId, ServerId
from elasticps.core.ranges import DataSpec
from elasticps.server.parameter_block import ParameterBlock
from elasticps.testing.members import Member, together
from elasticps.testing.rig import Rig
from tests.support.bits import done
from tests.support.checkers import bits_of_round
from tests.support.counted import BLOCKS, COUNTED, CountedJob
from tests.support.wire import eventually

Left = list[Coroutine[Any, Any, Any]]
"""What remains to be done of a round, by each member in turn."""


# -- how far a round is when somebody dies ------------------------------------------------------


def given(job: CountedJob) -> list[Member]:
    for member in job.members:
        job.give(member)
    return job.members


def begun(job: CountedJob, members: list[Member]) -> Left:
    """The members carry out their steps from now on."""
    return [done(member.start(job.whole(member))) for member in members]


async def pushed(job: CountedJob) -> list[Member]:
    members = given(job)
    await together(*(job.push(member) for member in members))
    return members


async def nothing(job: CountedJob, victim: ServerId) -> Left:
    return [job.whole(member) for member in given(job)]


async def half_staged(job: CountedJob, victim: ServerId) -> Left:
    *early, last = given(job)
    left = begun(job, early)
    await eventually(lambda: all(job.all_hold_back(member) for member in early))
    return [*left, job.whole(last)]


async def prepared_here(job: CountedJob, victim: ServerId) -> Left:
    for server in job.rig.servers.values():
        for conn in server.connections_from(victim):
            conn.pause_reading()
    left = begun(job, given(job))
    hosted = [job.primary(block) for block in led_by(job, victim)]
    await eventually(lambda: all(is_prepared(job, block) for block in hosted))
    return left


async def prepared_everywhere(job: CountedJob, victim: ServerId) -> Left:
    for conn in job.rig.servers[victim].server.peers._connections.values():
        conn.pause_reading()
    left = begun(job, given(job))
    backups = [
        job.rig.servers[backup].parameter_block(block)
        for block in led_by(job, victim)
        for backup in job.rig.entries[block].in_sync
    ]
    await eventually(lambda: all(is_prepared(job, block) for block in backups))
    return left


def is_prepared(job: CountedJob, block: ParameterBlock) -> bool:
    """Does the replica hold the round under way? A backup holds the one before until then."""
    prepared = block._replica.prepared
    return prepared is not None and prepared.round == job.rig.ledger.round + 1


async def acknowledged(job: CountedJob, victim: ServerId) -> Left:
    return [job.rest(member) for member in await pushed(job)]


async def half_voted(job: CountedJob, victim: ServerId) -> Left:
    *early, last = await pushed(job)
    left: Left = [done(member.start(job.rest(member))) for member in early]
    await eventually(lambda: len(job.rig.ledger.votes) == len(early))
    return [*left, job.rest(last)]


async def committed(job: CountedJob, victim: ServerId) -> Left:
    members = await pushed(job)
    commits = await together(*(member.exchange.vote() for member in members))
    return [job.read(member, commit) for member, commit in zip(members, commits, strict=True)]


async def applied(job: CountedJob, victim: ServerId) -> Left:
    first, *others = await committed(job, victim)
    await first
    return [_returned(), *others]


async def _returned() -> None:
    """The first member has read the round."""


def led_by(job: CountedJob, server: ServerId) -> list[BlockId]:
    return [block for block in job.blocks if job.rig.entries[block].primary == server]


STAGES: dict[str, Callable[[CountedJob, ServerId], Awaitable[Left]]] = {
    "before staging": nothing,
    "half staged": half_staged,
    "prepared here alone": prepared_here,
    "prepared, not acknowledged": prepared_everywhere,
    "acknowledged": acknowledged,
    "half voted": half_voted,
    "committed": committed,
    "applied": applied,
}
VICTIMS: dict[str, Callable[[Rig], ServerId]] = {
    "a block's primary": lambda rig: rig.entries[BlockId(1)].primary,
    "a backup": lambda rig: rig.entries[BlockId(1)].in_sync[0],
    "the ledger's primary": lambda rig: rig.entries[LEDGER].primary,
}

staged = pytest.mark.parametrize("stage", STAGES)
victims = pytest.mark.parametrize("victim", VICTIMS)


async def go_on(left: Left) -> None:
    """The survivors end their round."""
    await together(*left)


@staged
@victims
async def test_a_server_that_dies_loses_nothing_and_duplicates_nothing(
    victim: str, stage: str
) -> None:
    async with Rig(servers=3, start_workers=2, replicas=2) as rig:
        job = await CountedJob.begun(rig, 2)
        await job.rounds(1)
        dying = VICTIMS[victim](rig)
        left = await STAGES[stage](job, dying)
        await kill_server(rig, dying)
        await go_on(left)
        await job.rounds(2)
        assert rig.ledger.round == 4
        await job.assert_whole()


async def kill_server(rig: Rig, server: ServerId) -> None:
    paused = [c for other in rig.servers.values() for c in other.connections_from(server)]
    await rig.kill_server(server)
    for conn in paused:
        if not conn.closed:
            conn.resume_reading()


@staged
@victims
async def test_a_server_and_a_worker_that_die_at_once_leave_every_round_whole(
    victim: str, stage: str
) -> None:
    async with Rig(servers=3, start_workers=3, replicas=2) as rig:
        job = await CountedJob.begun(rig, 3)
        await job.rounds(1)
        server, worker = VICTIMS[victim](rig), job.members[1]
        left = await STAGES[stage](job, server)
        left.pop(1).close()
        await asyncio.gather(kill_server(rig, server), job.kill(worker))
        await go_on(left)
        await job.rounds(2)
        assert rig.ledger.round == 4
        await job.assert_whole()


async def test_a_worker_that_dies_after_the_commit_with_a_primary_counts_in_every_block() -> None:
    async with Rig(servers=3, start_workers=3, replicas=2) as rig:
        one, dying, other = members = await rig.workers(3, COUNTED)
        await eventually(lambda: all(entry.in_sync for entry in rig.entries.values()))
        before = one.values()
        for number, member in enumerate(members):
            member.give(COUNTED.full(2.0**number))
        await together(*(member.exchange.push() for member in members))
        commits = await together(*(member.exchange.vote() for member in members))
        for block in one.blocks:
            assert rig.primary(block).parameter_block(block)._replica.round == 0
        server = rig.entries[BlockId(1)].primary
        await asyncio.gather(rig.kill_server(server), rig.kill(dying))
        await together(one.exchange.pull(commits[0]), other.exchange.pull(commits[2]))
        assert bits_of_round(before, one.values(), 3) == {0b111}
        assert bits_of_round(before, other.values(), 3) == {0b111}
        before = one.values()
        await together(one.step(COUNTED.full(1.0)), other.step(COUNTED.full(4.0)))
        assert bits_of_round(before, one.values(), 2) == {0b101}


async def test_an_acknowledged_push_is_held_by_every_in_sync_replica() -> None:
    async with Rig(servers=3, start_workers=2, replicas=3) as rig:
        job = await CountedJob.begun(rig, 2)
        for _ in range(3):
            members = await pushed(job)
            pushes = {(member.id, member.exchange._seq) for member in members}
            for block in job.blocks:
                entry = rig.entries[block]
                assert len(entry.in_sync) == 2
                for server in entry.holders:
                    prepared = rig.servers[server].parameter_block(block)._replica.prepared
                    assert prepared is not None
                    assert set(prepared.pushes) == pushes
            await together(*(job.rest(member) for member in members))
        await job.assert_whole()


@pytest.mark.parametrize("stage", ["half staged", "acknowledged", "committed"])
@pytest.mark.parametrize("learner", ["promised", "empty"])
async def test_a_learner_that_dies_in_a_round_is_not_waited_for(learner: str, stage: str) -> None:
    async with Rig(servers=2, start_workers=2, replicas=2) as rig:
        job = await CountedJob.begun(rig, 2)
        first, *blocks = job.blocks
        holder = rig.entries[blocks[0]].primary
        dying = await rig.start_server(site=False)
        await rig.move(first, rig.entries[first].primary, dying)
        if learner == "empty":
            for conn in rig.servers[dying].connections_from(holder):
                conn.pause_reading()
        rig.pin(blocks, holder, dying)
        rig.leading = False
        mine = [b for b in blocks if dying in rig.entries[b].learners and led(rig, b, holder)]
        assert mine
        if learner == "promised":
            await eventually(lambda: {row.block for row in rig.servers[holder].promises} >= {*mine})
        left = await STAGES[stage](job, holder)
        rig.leading = True
        await rig.kill_server(dying)
        await go_on(left)
        await job.rounds(2)
        rig._pinned.clear()
        rig.lead()
        await job.assert_whole()


def led(rig: Rig, block: BlockId, server: ServerId) -> bool:
    return rig.entries[block].primary == server


# -- rounds to which nobody contributes ---------------------------------------------------------


@pytest.mark.parametrize("moment", ["before its commit", "before it is read", "after it"])
@victims
async def test_an_empty_round_survives_a_failover(victim: str, moment: str) -> None:
    async with Rig(servers=3, start_workers=3, replicas=2) as rig:
        job = await CountedJob.begun(rig, 3)
        for member in job.members:
            await member.exchange.register(DataSpec(size=9, batch_size=1, epochs=1, seed=0))
        await job.kill(job.members[0])
        one, other = job.members
        await eventually(lambda: len(rig.ledger.members) == 2)
        for member in job.members:
            assert await member.exchange.vote(contributes=False) is None
        vote = one.start(one.exchange.vote(contributes=False))
        await eventually(lambda: len(rig.ledger.votes) == 1)
        dying = VICTIMS[victim](rig)
        if moment == "before its commit":
            await rig.kill_server(dying)
        commits = await together(done(vote), other.exchange.vote(contributes=False))
        assert [commit.contributors for commit in commits] == [(), ()]
        if moment == "before it is read":
            await rig.kill_server(dying)
        await together(one.exchange.read(), other.exchange.read())
        if moment == "after it":
            await rig.kill_server(dying)
        for _ in range(2):
            assert one.exchange.member_turn.samples
            await together(job.step(one), other.exchange.abstain())
        assert rig.ledger.round == 3
        await job.assert_whole()


async def test_empty_rounds_in_a_row_survive_failovers_between_them() -> None:
    async with Rig(servers=3, start_workers=4, replicas=2) as rig:
        job = await CountedJob.begun(rig, 4)
        for member in job.members:
            await member.exchange.register(DataSpec(size=9, batch_size=1, epochs=1, seed=0))
        for _ in range(3):
            await job.kill(job.members[0])
            await together(*(member.exchange.abstain() for member in job.members))
            await rig.start_server()
            await eventually(job.is_settled)
            await rig.kill_server(rig.entries[BlockId(1)].primary)
        assert rig.ledger.round == 3
        await job.step(job.members[0])
        await job.assert_whole()


# -- how many copies an acknowledgement wants ---------------------------------------------------


@pytest.mark.parametrize("victim", ["a block's primary", "a backup"])
async def test_with_too_few_copies_nothing_is_acknowledged_until_a_new_one_is_in_sync(
    victim: str,
) -> None:
    async with Rig(servers=2, start_workers=2, replicas=2, min_insync=2) as rig:
        job = await CountedJob.begun(rig, 2)
        await job.rounds(2)
        await rig.kill_server(VICTIMS[victim](rig))
        members = given(job)
        tasks = [member.start(member.exchange.push()) for member in members]
        hosted = [job.primary(block) for block in job.blocks]
        await eventually(lambda: all(is_prepared(job, block) for block in hosted))
        assert [len(block.replication._waiting) for block in hosted] == [2] * len(hosted)
        assert not any(task.done() for task in tasks)
        joined = await rig.start_server()
        await together(*(done(task) for task in tasks))
        for block in job.blocks:
            assert is_prepared(job, rig.servers[joined].parameter_block(block))
        await together(*(job.rest(member) for member in members))
        await job.rounds(2)
        assert rig.ledger.round == 5
        await job.assert_whole()


async def test_a_first_value_wants_as_many_copies_as_a_push() -> None:
    async with Rig(servers=1, start_workers=1, replicas=2, min_insync=2) as rig:
        member = rig.worker(COUNTED)
        joining = member.start(member.join())
        await eventually(lambda: bool(rig.ledger.members))
        assert not joining.done()
        await rig.start_server()
        await joining


async def test_nobody_waits_for_a_deposed_primary_that_does_not_know_it() -> None:
    """Its daemon hears nothing of the plan, and what it holds back it will never answer."""
    async with Rig(servers=2, start_workers=2, replicas=2) as rig:
        job = await CountedJob.begun(rig, 2)
        early, late = given(job)
        held = early.start(job.whole(early))
        await eventually(lambda: job.all_hold_back(early))

        deposed, heir = rig.entries[LEDGER].primary, rig.entries[LEDGER].in_sync[0]
        rig.servers[deposed].child.stop()
        rig.pin(rig.entries, heir)

        await together(done(held), job.whole(late))
        assert all(entry.primary == heir for entry in rig.entries.values())
        for member in (early, late):
            verdict = await member.exchange.audit()
            assert (verdict.acknowledged, verdict.lost, verdict.duplicated) == (BLOCKS, 0, 0)
