"""Synchronous rounds over real servers: equal to a local run, and whole whoever comes or goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from elasticps.core.ids import LEDGER, Seq
from elasticps.core.ledger import Admitted, Committed, Join, Leave, Vote
from elasticps.core.replica import Commit
from elasticps.errors import JobFailed
from elasticps.wire.frame import Kind, Status
from elasticps.wire.messages import PullMeta, PushMeta, encode
from elasticps.worker.client import Call
from tests.support.checkers import bits_of_round, digest
from tests.support.members import Blueprint, Gradients, LocalRun, Member, together
from tests.support.rig import Rig
from tests.support.wire import eventually

COUNTED = Blueprint(options={"lr": 1.0}, dtype=torch.float64)
"""Its rounds are read back by ``bits_of_round``."""


def assert_close(member: Member, local: LocalRun, *, exactly: bool = False) -> None:
    for mine, its in zip(member.values(), local.parameters, strict=True):
        if exactly:
            assert torch.equal(mine, its)
        else:
            torch.testing.assert_close(mine, its.detach(), rtol=0, atol=1e-5)


def assert_equal(one: Member, other: Member) -> None:
    pairs = zip(one.values(), other.values(), strict=True)
    assert all(torch.equal(mine, its) for mine, its in pairs)


async def step_all(
    members: Sequence[Member], gradients: Sequence[Gradients], weights: Sequence[float] = ()
) -> None:
    given = zip(members, gradients, weights or [1.0] * len(members), strict=True)
    await together(*(member.step(item, weight=weight) for member, item, weight in given))


async def bits_of_step(members: Sequence[Member], numbers: Sequence[int]) -> set[int]:
    """A round in which each member's gradient is 2 to its number: who was counted."""
    before = members[0].values()
    await step_all(members, [COUNTED.full(2.0**number) for number in numbers])
    return bits_of_round(before, members[0].values(), len(members))


async def votes_are_in(rig: Rig, count: int) -> None:
    await eventually(lambda: len(rig.ledger.votes) == count)


# -- equal to a local run -----------------------------------------------------------------------

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01},
    "adamw": {"lr": 0.01},
    "adafactor": {"lr": 0.01},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_run_equals_the_local_optimizer_on_the_mean_gradient(
    count: int, optimizer: str
) -> None:
    blueprint = Blueprint(optimizer=optimizer, options=OPTIMIZERS[optimizer])
    async with Rig(servers=2, start_workers=count) as rig:
        members = await rig.workers(count, blueprint)
        local = LocalRun(blueprint)
        for number in range(5):
            gradients = [blueprint.random(10 * number + rank) for rank in range(count)]
            await step_all(members, gradients)
            local.step([(item, 1.0) for item in gradients])
        for member in members:
            assert_close(member, local, exactly=count == 1)
            assert_equal(member, members[0])


async def test_a_gradient_counts_by_the_samples_it_is_the_mean_of() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"])
    async with Rig(start_workers=3) as rig:
        members = await rig.workers(3, blueprint)
        local = LocalRun(blueprint)
        for number, weights in enumerate([(1.0, 2.0, 3.0), (16.0, 0.5, 1.0), (5.0, 5.0, 1e-3)]):
            gradients = [blueprint.random(10 * number + rank) for rank in range(3)]
            await step_all(members, gradients, weights)
            local.step(list(zip(gradients, weights, strict=True)))
        assert_close(members[0], local)


async def test_a_parameter_that_one_worker_has_no_gradient_for_counts_its_share_as_zeros() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"])
    async with Rig(start_workers=2) as rig:
        members = await rig.workers(2, blueprint)
        local = LocalRun(blueprint)
        for number in range(4):
            one, other = blueprint.random(number), blueprint.random(10 + number)
            gradients: list[Gradients] = [[one[0], None, None], [other[0], other[1], None]]
            if number == 3:
                gradients = [[None, one[1], one[2]], [None, None, None]]
            await step_all(members, gradients, (3.0, 1.0))
            local.step(list(zip(gradients, (3.0, 1.0), strict=True)))
        assert_close(members[0], local)
        assert_equal(*members)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
async def test_the_mean_of_half_precision_gradients_neither_overflows_nor_drifts(
    dtype: torch.dtype,
) -> None:
    blueprint = Blueprint(options={"lr": 1.0}, dtype=dtype)
    async with Rig(start_workers=3) as rig:
        members = await rig.workers(3, blueprint)
        zeros = blueprint.full(0.0)
        for member in members:
            assert all(bool(item.isfinite().all()) for item in member.values())
        before = members[0].values()
        await step_all(members, [blueprint.full(3000.0), zeros, zeros], (64.0, 32.0, 32.0))
        for was, now in zip(before, members[0].values(), strict=True):
            assert torch.equal(now, was - torch.full_like(was, 1500.0))


async def test_what_a_scheduler_changes_reaches_every_block() -> None:
    blueprint = Blueprint(optimizer="adamw", options={"lr": 0.1})
    described = blueprint.model.groups[0]
    async with Rig(start_workers=2) as rig:
        members = await rig.workers(2, blueprint)
        local = LocalRun(blueprint)
        schedule = torch.optim.lr_scheduler.OneCycleLR(local.optimizer, max_lr=1.0, total_steps=9)
        for number in range(8):
            gradients = [blueprint.random(10 * number + rank) for rank in range(2)]
            group = local.optimizer.param_groups[0]
            hyper = {
                key: list(item) if isinstance(item, tuple) else item
                for key, item in group.items()
                if key in described and key != "params"
            }
            changed = {key: item for key, item in hyper.items() if item != described[key]}
            assert {"lr", "betas"} & set(changed)
            steps = [
                member.step(item, hyper=[changed])
                for member, item in zip(members, gradients, strict=True)
            ]
            await together(*steps)
            local.step([(item, 1.0) for item in gradients])
            schedule.step()
        assert_close(members[0], local)


async def test_a_round_without_samples_for_a_worker_is_the_others_round() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"])
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, blueprint)
        local = LocalRun(blueprint)
        for number in range(4):
            gradients = blueprint.random(number)
            busy, idle = (one, other) if number % 2 else (other, one)
            await together(busy.step(gradients), idle.exchange.abstain())
            local.step([(gradients, 1.0)])
        assert_close(one, local, exactly=True)
        assert_equal(one, other)
        for member in (one, other):
            verdict = await member.exchange.audit()
            assert (verdict.acknowledged, verdict.lost, verdict.duplicated) == (8, 0, 0)


async def test_a_round_in_which_all_abstain_changes_nothing() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"])
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, blueprint)
        local = LocalRun(blueprint)
        for number in range(4):
            if number == 2:
                await together(one.exchange.abstain(), other.exchange.abstain())
            gradients = blueprint.random(number)
            await step_all((one, other), [gradients, gradients])
            local.step([(gradients, 1.0)])
        assert_close(one, local)
        assert one.exchange.turn is not None
        assert one.exchange.turn.round == 6


# -- workers come and go ------------------------------------------------------------------------


async def test_a_worker_joins_between_two_rounds_with_the_jobs_values() -> None:
    async with Rig() as rig:
        (first,) = await rig.workers(1, COUNTED)
        assert await bits_of_step([first], [0]) == {0b1}
        second = rig.worker(COUNTED, seed=9)
        joining = second.start(second.join())
        await eventually(lambda: bool(rig.ledger.joining))
        assert not joining.done()
        assert await bits_of_step([first], [0]) == {0b1}
        await joining
        assert_equal(first, second)
        assert await bits_of_step([first, second], [0, 1]) == {0b11}
        assert_equal(first, second)


async def test_a_worker_that_leaves_in_order_ends_its_round_first() -> None:
    async with Rig(start_workers=3) as rig:
        staying, leaving, third = members = await rig.workers(3, COUNTED)
        before = staying.values()
        await together(
            *(
                member.step(COUNTED.full(2.0**number), leaving=member is leaving)
                for number, member in enumerate(members)
            )
        )
        assert bits_of_round(before, staying.values(), 3) == {0b111}
        assert leaving.exchange.turn is None
        assert_equal(leaving, staying)
        with pytest.raises(JobFailed):
            await leaving.step(COUNTED.full(1.0))
        assert await bits_of_step([staying, third], [0, 2]) == {0b101}
        assert (await leaving.exchange.audit()).acknowledged == len(leaving.blocks)


async def test_a_worker_that_finishes_lets_the_others_round_go_on() -> None:
    async with Rig(start_workers=2) as rig:
        staying, leaving = await rig.workers(2, COUNTED)
        before = staying.values()
        step = staying.start(staying.step(COUNTED.full(1.0)))
        await votes_are_in(rig, 1)
        await leaving.exchange.leave()
        await step
        assert bits_of_round(before, staying.values(), 1) == {0b1}


@pytest.mark.parametrize("pushed", ["nothing", "half of its blocks", "all of its blocks"])
async def test_a_worker_that_dies_before_its_vote_counts_in_no_block(pushed: str) -> None:
    async with Rig(start_workers=3) as rig:
        one, dying, other = await rig.workers(3, COUNTED)
        before = one.values()
        dying.give(COUNTED.full(2.0))
        memories = dying.exchange._memory
        share = {"nothing": 0, "half of its blocks": 2, "all of its blocks": len(memories)}[pushed]
        turn = dying.exchange._member_turn()
        for memory in memories[:share]:
            await dying.stage(memory, turn.round, turn.generation)
        steps = [
            one.start(one.step(COUNTED.full(1.0))),
            other.start(other.step(COUNTED.full(4.0))),
        ]
        await votes_are_in(rig, 2)
        await rig.kill(dying)
        await together(*(_done(step) for step in steps))
        assert bits_of_round(before, one.values(), 2) == {0b101}
        assert_equal(one, other)
        assert await bits_of_step([one, other], [0, 2]) == {0b101}


async def _done(task: Any) -> Any:
    return await task


async def test_a_worker_that_dies_after_its_vote_counts_in_no_block_of_an_open_round() -> None:
    async with Rig(start_workers=3) as rig:
        one, dying, other = await rig.workers(3, COUNTED)
        before = one.values()
        dying.start(dying.step(COUNTED.full(2.0)))
        await votes_are_in(rig, 1)
        step = one.start(one.step(COUNTED.full(1.0)))
        await votes_are_in(rig, 2)
        await rig.kill(dying)
        await votes_are_in(rig, 1)
        await other.step(COUNTED.full(4.0))
        await step
        assert bits_of_round(before, one.values(), 2) == {0b101}
        assert_equal(one, other)


async def test_a_worker_that_dies_after_the_commit_counts_in_every_block() -> None:
    async with Rig(start_workers=3) as rig:
        one, dying, other = await rig.workers(3, COUNTED)
        before = one.values()
        dying.give(COUNTED.full(2.0))
        await dying.exchange.push()
        dying.start(dying.exchange.vote())
        await votes_are_in(rig, 1)
        for member, value in ((one, 1.0), (other, 4.0)):
            member.give(COUNTED.full(value))
            await member.exchange.push()
        commit, _ = await together(one.exchange.vote(), other.exchange.vote())
        await rig.kill(dying)
        await together(one.exchange.pull(commit), other.exchange.pull(commit))
        assert bits_of_round(before, one.values(), 3) == {0b111}
        assert_equal(one, other)
        assert await bits_of_step([one, other], [0, 2]) == {0b101}


async def test_a_worker_that_etcd_gave_up_on_is_refused_and_disturbs_no_block() -> None:
    async with Rig(start_workers=3) as rig:
        one, zombie, other = await rig.workers(3, COUNTED)
        before = one.values()
        zombie.give(COUNTED.full(2.0))
        await zombie.exchange.push()
        waiting = zombie.start(zombie.exchange.vote())
        await votes_are_in(rig, 1)
        rig.evict(zombie.id)
        with pytest.raises(JobFailed, match="not a member"):
            await waiting
        steps = [
            one.start(one.step(COUNTED.full(1.0))),
            other.start(other.step(COUNTED.full(4.0))),
        ]
        await zombie.exchange.push()
        await together(*(_done(step) for step in steps))
        await zombie.exchange.push()
        assert bits_of_round(before, one.values(), 2) == {0b101}
        assert await bits_of_step([one, other], [0, 2]) == {0b101}
        ledger = rig.primary(LEDGER).ledger_host()
        assert (ledger._waiting, ledger._answers) == ({}, {})


async def test_a_worker_that_dies_while_it_waits_to_be_admitted_is_not_waited_for() -> None:
    async with Rig() as rig:
        (first,) = await rig.workers(1, COUNTED)
        joiner = rig.worker(COUNTED)
        joiner.start(joiner.join())
        await eventually(lambda: bool(rig.ledger.joining))
        await rig.kill(joiner)
        ledger = rig.primary(LEDGER).ledger_host()
        await eventually(lambda: not rig.ledger.joining)
        assert await bits_of_step([first], [0]) == {0b1}
        assert ledger._waiting == {}


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
        await together(*(_done(task) for task in joining))
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
        await member.exchange.initialize([item.initial() for item in member.exchange._memory])
        assert digests(rig) == before


# -- repeated requests --------------------------------------------------------------------------


def digests(rig: Rig) -> list[str]:
    """The state of every block but the ledger, at its primary."""
    blocks = [block for block in rig.entries if block != LEDGER]
    return [digest(rig.primary(block).parameter_block(block)) for block in blocks]


async def repeat_everything(member: Member, commit: Commit, generation: int) -> set[Status]:
    """Ask again all that the member asked in the round of ``commit``; the values stay unread."""
    statuses: set[Status] = set()
    for memory in member.exchange._memory:
        push = Call(
            kind=Kind.PUSH,
            block=memory.block.id,
            meta=encode(PushMeta(commit.generation, 1.0, {})),
            payload=memory.gradient(),
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
        assert await repeat_everything(one, commit, commit.generation) == {Status.OK}
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
        await one.exchange.push()
        for parameter in one.parameters:
            assert parameter.grad is not None
            parameter.grad.fill_(64.0)
        await one.exchange.push()
        for parameter in one.parameters:
            assert parameter.grad is not None
            parameter.grad.fill_(1.0)
        vote = one.start(one.exchange.vote())
        await other.step(COUNTED.full(2.0))
        commit = await vote
        assert commit is not None
        await one.exchange.pull(commit)
        assert bits_of_round(before, one.values(), 2) == {0b11}


async def test_a_worker_that_gave_its_last_push_up_may_leave_a_gap_in_its_numbers() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, COUNTED)
        assert await bits_of_step([member], [0]) == {0b1}
        member.exchange._seq = Seq(40)
        assert await bits_of_step([member], [0]) == {0b1}
        member.exchange._seq = Seq(3)
        member.give(COUNTED.full(8.0))
        before = member.values()
        await member.exchange.push()
        commit = await member.exchange.vote()
        assert commit is not None
        call = Call(kind=Kind.PULL, block=member.blocks[0], meta=encode(PullMeta(commit)))
        assert (await member.ask(call)).header.status is Status.NOT_STAGED
        assert bits_of_round(before, member.values(), 1) == {0}


async def test_leaving_twice_is_leaving_once() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = await rig.workers(2, COUNTED)
        await other.exchange.leave()
        await other.client.ledger(Leave)
        assert await bits_of_step([one], [0]) == {0b1}
        with pytest.raises(JobFailed, match="has left"):
            await other.client.ledger(Join)
