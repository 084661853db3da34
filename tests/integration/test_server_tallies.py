"""What a shard server counts while it serves real workers: all of it, once, and only that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest
import torch

from elasticps.core.consistency import Consistency
from elasticps.core.ids import LEDGER, Generation, Round, Seq
from elasticps.core.replication import Role
from elasticps.errors import JobFailed
from elasticps.server import table as table_module
from elasticps.server.finite import SpotCheck
from elasticps.testing.members import Member
from elasticps.testing.rig import Rig
from elasticps.wire.frame import Kind, Status
from elasticps.wire.messages import PushMeta, encode
from elasticps.wire.tallies import JobCounts, JobHolding, JobTally
from elasticps.wire.tensors import bytes_of
from elasticps.worker.client import Call
from tests.support.bits import COUNTED, bits_of_step, staged, step_all
from tests.support.wire import eventually


def told(rig: Rig) -> list[JobTally]:
    """What each server says of the job."""
    tallies = [server.server.table.load().tally for server in rig.servers.values()]
    return [row for tally in tallies for row in tally.jobs]


def total(rig: Rig) -> JobCounts:
    rows = [row.counts for row in told(rig)]
    fields = JobCounts.__struct_fields__
    return JobCounts(**{name: sum(getattr(row, name) for row in rows) for name in fields})


async def half_a_round(rig: Rig, member: Member) -> Awaitable[None]:
    """The member's round, under way: every block holds its push until another's comes."""
    stepping: Awaitable[None] = member.start(member.step(COUNTED.full(1.0)))
    await eventually(lambda: staged(rig, member) == len(member.blocks))
    return stepping


def value_bytes(member: Member) -> int:
    return sum(value.nbytes for value in member.values())


async def test_rounds_pushes_pulls_and_steps_are_counted_once() -> None:
    async with Rig(servers=2, start_workers=2) as rig:
        members = await rig.workers(2, COUNTED)
        before = total(rig)
        assert (before.pushes, before.rounds) == (0, 0)
        for _ in range(3):
            assert await bits_of_step(members, [0, 1]) == {0b11}
        blocks = len(members[0].blocks)
        nbytes = value_bytes(members[0])
        counts = total(rig)
        assert (counts.rounds, counts.pushes) == (3, 2 * 3 * blocks)
        assert counts.pushed_bytes == 2 * 3 * nbytes
        assert counts.pulls - before.pulls == 2 * 3 * blocks
        assert counts.pulled_bytes - before.pulled_bytes == 2 * 3 * nbytes
        assert counts.steps == 3 * blocks
        assert counts.apply_s > 0
        assert (counts.discarded, counts.nonfinite) == (0, 0)
        assert counts.checked > 0


async def test_backups_get_every_op_and_count_their_own_steps() -> None:
    async with Rig(servers=2, replicas=2) as rig:
        (member,) = await rig.workers(1, COUNTED)
        await eventually(lambda: all(len(e.in_sync) == 1 for e in rig.entries.values()))
        before = total(rig)
        for _ in range(2):
            await bits_of_step([member], [0])
        counts = total(rig)
        blocks = len(member.blocks)
        assert counts.op_bytes - before.op_bytes >= 2 * value_bytes(member)
        assert counts.ops - before.ops >= 2 * blocks
        assert counts.snapshots >= blocks + 1
        assert counts.snapshot_bytes >= value_bytes(member)
        assert counts.pushes == 2 * blocks
        holdings = [row.holding for row in told(rig)]
        assert sum(each.primary for each in holdings) == blocks + 1
        assert sum(each.in_sync for each in holdings) == blocks + 1
        assert sum(each.staleness is not None for each in holdings) == 1


async def test_a_gradient_whose_round_begins_anew_is_lost_work() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, COUNTED)
        stepping = await half_a_round(rig, one)
        assert total(rig).discarded == 0
        await rig.kill(other)
        await stepping
        counts = total(rig)
        assert counts.discarded == len(one.blocks)
        assert counts.pushes == 2 * len(one.blocks)
        assert counts.rounds == 1


async def test_a_gradient_that_is_not_finite_is_seen() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, COUNTED)
        for server in rig.servers.values():
            server.server.table._spot_check._due_s = 0.0
        await step_all([member], [COUNTED.full(float("nan"))])
        await eventually(lambda: total(rig).nonfinite > 0)
        counts = total(rig)
        assert counts.nonfinite <= counts.checked


def test_spot_checks_take_a_small_share_of_the_time() -> None:
    check = SpotCheck()
    assert check.is_due
    for value, finite in ((1.0, True), (float("inf"), False), (float("nan"), False)):
        gradient = torch.zeros(100_000)
        gradient[-1] = value
        assert check.is_finite(gradient) is finite
    assert check.is_finite(torch.zeros(0))
    assert not check.is_finite(torch.tensor([1.0, complex(0, float("inf"))]))
    assert check.is_finite(torch.tensor([3e38, 3e38]))  # their sum is not
    assert check.is_finite(torch.tensor([1, 2]))


async def test_a_push_that_is_refused_is_counted_by_its_status() -> None:
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, COUNTED)
        await bits_of_step([member], [0])
        (server,) = rig.servers.values()
        assert not any(server.server.table.load().tally.refused.values())
        memory = member.exchange._memory[0]
        gradient = memory.outgoing(None)
        assert gradient is not None
        pushes = {
            Status.STALE_GENERATION: (Round(2), PushMeta(Generation(0), 1.0, {}, 1, None)),
            Status.CONFLICT: (Round(9), PushMeta(Generation(1), 1.0, {}, 1, None)),
            Status.REFUSED: (Round(2), PushMeta(Generation(1), -1.0, {}, 1, None)),
        }
        for status, (round_, meta) in pushes.items():
            call = Call(
                kind=Kind.PUSH,
                block=memory.block.id,
                meta=encode(meta),
                payload=bytes_of(gradient),
                seq=Seq(99),
                round=round_,
            )
            if status is Status.REFUSED:
                with pytest.raises(JobFailed):
                    await member.ask(call)
            else:
                assert (await member.ask(call)).header.status is status
        refused = server.server.table.load().tally.refused
        assert {reason: count for reason, count in refused.items() if count} == {
            "stale_generation": 1,
            "conflict": 1,
            "refused": 1,
        }


async def test_a_worker_that_is_ahead_is_the_jobs_staleness() -> None:
    async with Rig(start_workers=2, consistency=Consistency.ASYNC) as rig:
        fast, slow = await rig.workers(2, COUNTED)
        ledger = rig.primary(LEDGER).ledger_host()
        assert ledger.staleness == 0
        for _ in range(3):
            await fast.step(COUNTED.full(1.0))
        assert ledger.staleness == 3
        await slow.step(COUNTED.full(1.0))
        assert ledger.staleness == 2


async def test_bytes_are_counted_by_transport() -> None:
    for local, used, unused in ((True, "shm", "tcp"), (False, "tcp", "shm")):
        async with Rig(servers=1, local=local) as rig:
            (member,) = await rig.workers(1, COUNTED)
            await bits_of_step([member], [0])
            (tally,) = (each.server.table.load().tally for each in rig.servers.values())
            nbytes = value_bytes(member)
            assert tally.traffic[used].received >= nbytes
            assert tally.traffic[used].sent >= nbytes
            assert tally.traffic[unused].received == tally.traffic["tls"].received == 0


async def test_a_job_that_is_dropped_is_told_of_once_more() -> None:
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, COUNTED)
        await bits_of_step([member], [0])
        (server,) = rig.servers.values()
        table = server.server.table
        pushes = table.load().tally.jobs[0].counts.pushes
        table.drop_job(server.ledger_host().job)
        (last,) = table.load().tally.jobs
        assert last.counts.pushes == pushes
        assert last.holding == JobHolding()
        assert table.load().tally.jobs == ()


async def test_a_block_that_waits_for_its_backup_lags() -> None:
    async with Rig(servers=2, replicas=2) as rig:
        (member,) = await rig.workers(1, COUNTED)
        await eventually(lambda: all(len(e.in_sync) == 1 for e in rig.entries.values()))
        await bits_of_step([member], [0])
        await eventually(lambda: all(row.holding.lag_ops == 0 for row in told(rig)))
        primary = rig.primary(LEDGER)
        hosted = primary.ledger_host()
        assert hosted.replication.role is Role.PRIMARY
        hosted.replication.version += 2  # two ops that nobody is sent
        primary.server.table.load()
        await eventually(lambda: primary.server.table.load().tally.jobs[0].holding.lag_s > 0)
        assert primary.server.table.load().tally.jobs[0].holding.lag_ops == 2
        hosted.replication.version -= 2


async def test_a_load_that_is_counted_in_turns_is_the_same_and_lets_others_be_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(table_module, "COUNTED_AT_ONCE", 1)
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, COUNTED)
        await bits_of_step([member], [0])
        (server,) = rig.servers.values()
        table = server.server.table
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            asyncio.get_running_loop().call_soon(turn)

        turn()
        in_turns, spent_s = await table.load_in_turns()
        assert turns > in_turns.blocks
        assert spent_s > 0
        at_once = table.load()
        assert (in_turns.blocks, in_turns.pushes) == (at_once.blocks, at_once.pushes)
        assert in_turns.tally.jobs[0].holding == at_once.tally.jobs[0].holding
