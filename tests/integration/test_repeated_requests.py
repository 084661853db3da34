"""What is asked twice is done once: first values, pushes, votes, joins and goodbyes."""

from __future__ import annotations

import asyncio

import pytest
import torch

from elasticps.core.commands import Admitted, Committed, Join, Leave, Vote
from elasticps.core.ids import LEDGER, Round, Seq
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed, UsageError
from elasticps.testing.members import Member, together
from elasticps.testing.rig import Rig
from elasticps.wire.frame import Kind, Status
from elasticps.wire.messages import PullMeta, PushMeta, encode
from elasticps.wire.tensors import bytes_of
from elasticps.worker.client import Call
from tests.support.bits import COUNTED, assert_equal, bits_of_step, done, hold
from tests.support.checkers import bits_of_round, digest
from tests.support.wire import eventually

# -- the first values ---------------------------------------------------------------------------


@pytest.mark.parametrize("given", ["nothing", "half of the blocks", "all of the blocks"])
async def test_a_first_initializer_that_dies_is_followed_by_the_next(given: str) -> None:
    async with Rig(start_workers=3) as rig:
        first = rig.worker(COUNTED, seed=1)
        admission = first.start(first.client.ledger(Join))
        await eventually(lambda: bool(rig.ledger.joining))
        others = [rig.worker(COUNTED, seed=2), rig.worker(COUNTED, seed=3)]
        joining = [other.start(other.join()) for other in others]
        admitted = await admission
        assert isinstance(admitted, Admitted)
        assert admitted.initialize
        memories = first.exchange._memory
        share = {"nothing": 0, "half of the blocks": 2, "all of the blocks": len(memories)}[given]
        for memory in memories[:share]:
            meta, payload = memory.initial()
            call = Call(kind=Kind.INIT, block=memory.block.id, meta=encode(meta), payload=payload)
            assert (await first.ask(call)).header.status is Status.OK
        assert not any(task.done() for task in joining)
        await rig.kill(first)
        await together(*(done(task) for task in joining))
        seed = 2 if rig.ledger.members[0] == others[0].id else 3
        for member in others:
            pairs = zip(member.values(), COUNTED.random(seed), strict=True)
            assert all(torch.equal(mine, its) for mine, its in pairs)
        assert await bits_of_step(others, [0, 1]) == {0b11}


async def test_a_first_value_after_the_first_round_changes_nothing() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, COUNTED)
        assert await bits_of_step([member], [0]) == {0b1}
        before = digests(rig)
        states = [item.initial() for item in member.exchange._memory]
        await member.exchange.initialize(states, Round(0))
        assert digests(rig) == before


# -- repeated requests --------------------------------------------------------------------------


def digests(rig: Rig) -> list[str]:
    """The state of every block but the ledger, at its primary."""
    blocks = [block for block in rig.entries if block != LEDGER]
    return [digest(rig.primary(block).parameter_block(block)) for block in blocks]


async def repeat_everything(member: Member, commit: Commit) -> set[Status]:
    """Ask again all that the member asked in the round of ``commit``; the values stay unread."""
    statuses: set[Status] = set()
    for memory in member.exchange._memory:
        gradient = memory.outgoing(None)
        assert gradient is not None
        push = Call(
            kind=Kind.PUSH,
            block=memory.block.id,
            meta=encode(PushMeta(commit.generation, 1.0, {}, 2, None)),
            payload=bytes_of(gradient),
            seq=member.exchange._seq,
            round=commit.round,
        )
        pull = Call(kind=Kind.PULL, block=memory.block.id, meta=encode(PullMeta(commit)))
        for call in (push, pull, push):
            reply = await member.ask(call)
            statuses.add(reply.header.status)
            if call is pull:
                assert reply.payload == memory.value
    return statuses


async def test_repeated_requests_get_the_same_answers_and_change_nothing() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = members = await rig.workers(2, COUNTED)
        assert await bits_of_step(members, [0, 1]) == {0b11}
        commit = one.exchange.commit
        assert commit is not None
        before = digests(rig)
        assert await repeat_everything(one, commit) == {Status.OK}
        for _ in range(2):
            again = await one.client.ledger(
                lambda worker: Vote(worker, commit.round, commit.generation)
            )
            admitted = await one.client.ledger(Join)
            assert isinstance(again, Committed)
            assert isinstance(admitted, Admitted)
            assert again.commit == admitted.commit == commit
        assert digests(rig) == before
        assert rig.ledger.round == 1
        assert await bits_of_step(members, [0, 1]) == {0b11}
        assert_equal(one, other)
        for member in members:
            verdict = await member.exchange.audit()
            assert (verdict.lost, verdict.duplicated) == (0, 0)


async def test_a_push_that_is_staged_twice_counts_once() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, COUNTED)
        before = one.values()
        one.give(COUNTED.full(1.0))
        for task in await hold(rig, one, one.exchange._memory):
            task.cancel()
            await asyncio.wait({task})
        one.exchange.shared.settle()  # as a step does at its end, before its script goes on
        for parameter in one.parameters:
            assert parameter.grad is not None
            parameter.grad.fill_(64.0)
        again = await hold(rig, one, one.exchange._memory)
        other.give(COUNTED.full(2.0))
        await other.exchange.push()
        assert await together(*(done(task) for task in again)) == [True] * len(again)
        await one.exchange.push()
        commit, _ = await together(one.exchange.vote(), other.exchange.vote())
        await one.exchange.pull(commit)
        assert bits_of_round(before, one.values(), 2) == {0b11}


async def test_a_state_that_all_workers_load_is_taken_though_one_of_them_pushes_already() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, COUNTED)
        one.give(COUNTED.full(1.0))
        first, *_ = one.exchange._memory
        (held,) = await hold(rig, one, [first])

        states = [memory.initial() for memory in other.exchange._memory]
        await other.exchange.initialize(states, Round(0))

        another = [memory.initial() for memory in other.exchange._memory]
        with torch.no_grad():
            for parameter in other.parameters:
                parameter.add_(1.0)
        with pytest.raises(UsageError, match="others had begun to train"):
            await other.exchange.initialize(another, Round(0))
        held.cancel()


async def test_a_worker_that_gave_its_last_push_up_may_leave_a_gap_in_its_numbers() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, COUNTED)
        assert await bits_of_step([member], [0]) == {0b1}
        member.exchange._seq = Seq(40)
        assert await bits_of_step([member], [0]) == {0b1}


async def test_a_push_with_a_number_of_the_past_is_not_counted() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, COUNTED)
        member.exchange._seq = Seq(40)
        assert await bits_of_step([member], [0]) == {0b1}
        before = digests(rig)
        member.exchange._seq = Seq(3)
        member.give(COUNTED.full(8.0))
        await member.exchange.push()
        assert digests(rig) == before
        member.exchange._seq = Seq(41)
        assert await bits_of_step([member], [0]) == {0b1}


async def test_leaving_twice_is_leaving_once() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, COUNTED)
        await other.exchange.leave()
        await other.client.ledger(Leave)
        assert await bits_of_step([one], [0]) == {0b1}
        with pytest.raises(JobFailed, match="has left"):
            await other.client.ledger(Join)
