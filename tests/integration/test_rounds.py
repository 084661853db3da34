"""Synchronous rounds over real servers: equal to a local run, and whole whoever comes or goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from elasticps.core.ids import LEDGER
from elasticps.core.ranges import DataSpec
from elasticps.errors import JobFailed
from elasticps.testing.members import Blueprint, Gradients, LocalRun, Member, together
from elasticps.testing.rig import Rig
from tests.support.bits import COUNTED, assert_equal, bits_of_step, done, hold, staged, step_all
from tests.support.checkers import bits_of_round
from tests.support.wire import eventually


def assert_close(member: Member, local: LocalRun, *, exactly: bool = False) -> None:
    for mine, its in zip(member.values(), local.parameters, strict=True):
        if exactly:
            assert torch.equal(mine, its)
        else:
            torch.testing.assert_close(mine, its.detach(), rtol=0, atol=1e-5)


async def votes_are_in(rig: Rig, count: int) -> None:
    await eventually(lambda: len(rig.ledger.votes) == count)


async def pushed(members: Sequence[Member], gradients: Sequence[Gradients]) -> None:
    """Each has given and pushed its gradient, and knows that all of them are prepared."""
    for member, item in zip(members, gradients, strict=True):
        member.give(item)
    await together(*(member.exchange.push() for member in members))


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


async def register(members: Sequence[Member], **data: int) -> None:
    spec = DataSpec(**{"epochs": 1, "seed": 0, **data})
    for member in members:
        await member.exchange.register(spec)


def has_samples(member: Member) -> bool:
    return bool(member.exchange.member_turn.samples)


async def test_a_round_without_samples_for_a_worker_is_the_others_round() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"])
    async with Rig(start_workers=2) as rig:
        one, other = members = await rig.workers(2, blueprint)
        await register(members, size=5, batch_size=4, epochs=3)
        local = LocalRun(blueprint)
        for number in range(6):
            gradients = blueprint.random(number)
            work = [m.step(gradients) if has_samples(m) else m.exchange.abstain() for m in members]
            assert has_samples(other) == (number % 2 == 0)
            await together(*work)
            local.step([(gradients, 1.0)])
        assert_close(one, local)
        assert_equal(one, other)
        for member, rounds in ((one, 6), (other, 3)):
            verdict = await member.exchange.audit()
            assert (verdict.acknowledged, verdict.lost, verdict.duplicated) == (4 * rounds, 0, 0)


async def test_who_was_lent_samples_may_not_abstain() -> None:
    async with Rig(start_workers=2) as rig:
        one, other = members = await rig.workers(2, COUNTED)
        await register(members, size=8, batch_size=2)
        for member in members:
            with pytest.raises(JobFailed, match="must take its samples"):
                await member.exchange.abstain()
        assert await bits_of_step([one, other], [0, 1]) == {0b11}


async def test_a_round_in_which_all_abstain_changes_nothing() -> None:
    async with Rig(start_workers=3) as rig:
        reader, one, other = members = await rig.workers(3, COUNTED)
        await register(members, size=8, batch_size=1)
        assert [has_samples(member) for member in members] == [True, False, False]
        before = one.values()
        await rig.kill(reader)
        await together(one.exchange.abstain(), other.exchange.abstain())
        assert bits_of_round(before, one.values(), 1) == {0}
        assert [has_samples(member) for member in (one, other)] == [True, False]
        await together(one.step(COUNTED.full(1.0)), other.exchange.abstain())
        assert bits_of_round(before, one.values(), 1) == {0b1}
        assert_equal(one, other)
        assert rig.ledger.round == 2


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
        await eventually(lambda: staged(rig, staying) == len(staying.blocks))
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
        await hold(rig, dying, memories[:share])
        steps = [
            one.start(one.step(COUNTED.full(1.0))),
            other.start(other.step(COUNTED.full(4.0))),
        ]
        if share == len(memories):
            await votes_are_in(rig, 2)
        else:
            left = len(memories) - share
            await eventually(lambda: staged(rig, one) == staged(rig, other) == left)
        await rig.kill(dying)
        await together(*(done(step) for step in steps))
        assert bits_of_round(before, one.values(), 2) == {0b101}
        assert_equal(one, other)
        assert await bits_of_step([one, other], [0, 2]) == {0b101}


async def test_a_worker_that_dies_after_its_vote_counts_in_no_block_of_an_open_round() -> None:
    async with Rig(start_workers=3) as rig:
        one, dying, other = members = await rig.workers(3, COUNTED)
        before = one.values()
        await pushed(members, [COUNTED.full(value) for value in (1.0, 2.0, 4.0)])
        dying.start(dying.exchange.vote())
        vote = one.start(one.exchange.vote())
        await votes_are_in(rig, 2)
        await rig.kill(dying)
        assert await vote is None
        await together(one.step(COUNTED.full(1.0)), other.step(COUNTED.full(4.0)))
        assert bits_of_round(before, one.values(), 2) == {0b101}
        assert_equal(one, other)


async def test_a_worker_that_dies_after_the_commit_counts_in_every_block() -> None:
    async with Rig(start_workers=3) as rig:
        one, dying, other = members = await rig.workers(3, COUNTED)
        before = one.values()
        await pushed(members, [COUNTED.full(value) for value in (1.0, 2.0, 4.0)])
        dying.start(dying.exchange.vote())
        commit, _ = await together(one.exchange.vote(), other.exchange.vote())
        await rig.kill(dying)
        await together(one.exchange.pull(commit), other.exchange.pull(commit))
        assert bits_of_round(before, one.values(), 3) == {0b111}
        assert_equal(one, other)
        assert await bits_of_step([one, other], [0, 2]) == {0b101}


async def test_a_worker_that_etcd_gave_up_on_is_refused_and_disturbs_no_block() -> None:
    async with Rig(start_workers=3) as rig:
        one, zombie, other = members = await rig.workers(3, COUNTED)
        before = one.values()
        await pushed(members, [COUNTED.full(value) for value in (1.0, 2.0, 4.0)])
        waiting = zombie.start(zombie.exchange.vote())
        await votes_are_in(rig, 1)
        rig.evict(zombie.id)
        with pytest.raises(JobFailed, match="not a member"):
            await waiting
        assert await push_all(zombie) == {True}
        step = one.start(one.step(COUNTED.full(1.0)))
        await eventually(lambda: staged(rig, one) == len(one.blocks))
        assert await push_all(zombie) == {False}
        await other.step(COUNTED.full(4.0))
        await step
        assert bits_of_round(before, one.values(), 2) == {0b101}
        assert await push_all(zombie) == {False}
        with pytest.raises(JobFailed, match="not a member"):
            await zombie.exchange.push()
        assert await bits_of_step([one, other], [0, 2]) == {0b101}
        ledger = rig.primary(LEDGER).ledger_host()
        assert (ledger._waiting, ledger._answers) == ({}, {})
        assert ledger._attending.keys() <= {one.id, other.id}


async def push_all(member: Member) -> set[bool]:
    """Whether a replayed push counts as held, block by block."""
    return {await member.stage(memory) for memory in member.exchange._memory}


async def test_a_worker_that_waits_for_anothers_push_hears_of_its_death() -> None:
    async with Rig(start_workers=2) as rig:
        one, dying = await rig.workers(2, COUNTED)
        before = one.values()
        step = one.start(one.step(COUNTED.full(1.0)))
        await eventually(lambda: staged(rig, one) == len(one.blocks))
        assert not step.done()
        await rig.kill(dying)
        await step
        assert bits_of_round(before, one.values(), 1) == {0b1}


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
