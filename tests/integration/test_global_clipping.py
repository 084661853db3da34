"""``clip_grad_norm``: the gradient of the whole round is clipped, as a local run clips it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.nn.utils import clip_grad_norm_

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.core.ids import LEDGER, BlockId, ServerId
from elasticps.testing.members import Blueprint, Gradients, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.wire.inflight import Reply
from elasticps.worker.client import Call
from tests.support.bits import done
from tests.support.checkers import brought_up, digest
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
)
from tests.support.wire import eventually

BOUND = 0.5
OPTIMIZERS: dict[str, tuple[type[optim.Optimizer], dict[str, Any]]] = {
    "sgd": (optim.SGD, {"lr": 0.05, "momentum": 0.9}),
    "adamw": (optim.AdamW, {"lr": 0.01}),
    "adafactor": (optim.Adafactor, {"lr": 0.01}),
}
"""Blocks that are pieces of a parameter, and whole ones. AdamW all but forgets a constant scale."""


def bound_of(step: int) -> float:
    """A schedule: every gradient is clipped, and by another factor each."""
    return BOUND / (1 + step)


def trained(name: str = "sgd") -> Callable[[elasticps.Run], Any]:
    """A script; returns its model, and the norms that it was told."""

    def script(run: elasticps.Run) -> tuple[nn.Module, list[float]]:
        model, norms = network(), []
        optimizer = run.optimizer(model, name, clip_grad_norm=BOUND, **OPTIMIZERS[name][1])
        for batch in run.data(dataset(), batch_size=BATCH):
            optimizer.clip_grad_norm = bound_of(run.round)
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            norms.append(optimizer.grad_norm)
        return model, norms

    return script


def trained_alone(name: str = "sgd") -> tuple[nn.Module, list[float]]:
    model, norms = network(), []
    kind, options = OPTIMIZERS[name]
    optimizer = kind(model.parameters(), **options)
    for step, batch in enumerate(batches()):
        optimizer.zero_grad()
        backward(model, batch)
        norms.append(float(clip_grad_norm_(model.parameters(), bound_of(step))))
        assert norms[-1] > bound_of(step), "nothing is clipped"
        optimizer.step()
    return model, norms


# -- equal to a local run -----------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_job_of_any_number_of_workers_clips_as_a_local_run_does(
    count: int, name: str
) -> None:
    async with Rig(servers=2, start_workers=count, replicas=2) as rig:
        results = await as_workers(rig, count, trained(name))
    alone, norms = trained_alone(name)
    for model, told in results:
        assert_equal(model, alone, exactly=False)
        assert_equal(model, results[0][0])
        assert told == pytest.approx(norms, rel=1e-4)


@pytest.mark.parametrize(
    "job",
    [
        {"strategy": "all-reduce"},
        {"strategy": "gossip"},
        {"strategy": "local-sgd:h=2"},
        {"consistency": Consistency.ASYNC},
        {"consistency": Consistency.BOUNDED, "staleness": 1},
    ],
    ids=str,
)
async def test_a_lone_worker_clips_as_a_local_run_does_under_every_strategy(
    job: dict[str, Any],
) -> None:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", clip_grad_norm=BOUND, **OPTIMIZERS["sgd"][1])
        for batch in run.data(dataset(), batch_size=BATCH):
            optimizer.clip_grad_norm = bound_of(run.steps)
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        return model

    async with Rig(**job) as rig:
        model = await as_worker(rig, script)
    assert_equal(model, trained_alone()[0], exactly=False)


async def test_all_reduce_clips_the_sum_of_all_workers() -> None:
    async with Rig(start_workers=2, strategy="all-reduce") as rig:
        results = await as_workers(rig, 2, trained())
    alone, norms = trained_alone()
    for model, told in results:
        assert_equal(model, alone, exactly=False)
        assert told == pytest.approx(norms, rel=1e-4)


async def test_a_gradient_that_is_no_number_spreads_as_it_does_in_torch() -> None:
    blueprint = Blueprint()
    async with Rig(start_workers=2) as rig:
        members = await clipping(rig, 2, blueprint)
        bad = [item.clone() for item in blueprint.random(1)]
        bad[1][0, 0] = torch.nan
        await round_of(members, [bad, blueprint.random(2)])
        assert all(bool(item.isnan().all()) for item in members[0].values())


async def test_a_parameter_without_gradient_is_in_no_norm_and_takes_no_step() -> None:
    blueprint = Blueprint(options={"lr": 0.1, "weight_decay": 0.1})
    async with Rig(start_workers=2) as rig:
        members = await clipping(rig, 2, blueprint)
        one, other = blueprint.random(1), blueprint.random(2)
        rounds: list[list[Gradients]] = [
            [[one[0], None, None], [other[0], other[1], None]],
            [[None, None, None], [None, None, None]],
        ]
        local = clipped_locally(blueprint)
        for gradients in rounds:
            await round_of(members, gradients)
            local.step([(item, 1.0) for item in gradients])
        assert_close(members, local)


async def test_half_precision_is_clipped_by_the_norm_of_what_was_summed() -> None:
    blueprint = Blueprint(dtype=torch.bfloat16, options={"lr": 1.0}, zeros=True)
    async with Rig(start_workers=2) as rig:
        members = await clipping(rig, 2, blueprint)
        await round_of(members, [blueprint.full(4.0), blueprint.full(2.0)])
        count = sum(item.numel() for item in members[0].values())
        for item in members[0].values():
            expected = torch.full_like(item, -BOUND / count**0.5)
            torch.testing.assert_close(item, expected, rtol=0.01, atol=0)


async def test_what_a_codec_lost_is_not_in_the_norm() -> None:
    blueprint = Blueprint(options={"lr": 1.0}, zeros=True)
    async with Rig(start_workers=2, replicas=2, codec="top-k:ratio=0.01") as rig:
        members = await clipping(rig, 2, blueprint)
        await round_of(members, [blueprint.random(1), blueprint.random(2)])
        moved = torch.cat([item.flatten() for item in members[0].values()])
        assert float(moved.norm()) == pytest.approx(BOUND, rel=1e-4)
        assert int((moved != 0).sum()) < len(moved) / 10


# -- whoever dies -------------------------------------------------------------------------------


async def clipping(rig: Rig, count: int, blueprint: Blueprint) -> list[Member]:
    members = await rig.workers(count, blueprint)
    for member in members:
        member.exchange.clipping.bound = BOUND
    return members


async def round_of(members: Sequence[Member], gradients: Sequence[Gradients]) -> None:
    pairs = zip(members, gradients, strict=True)
    await together(*(member.step(item) for member, item in pairs))


def clipped_locally(blueprint: Blueprint) -> LocalRun:
    local = LocalRun(blueprint)

    def clip(*_: Any) -> None:
        clip_grad_norm_(local.parameters, BOUND)

    local.optimizer.register_step_pre_hook(clip)
    return local


def assert_close(members: Sequence[Member], local: LocalRun) -> None:
    for member in members:
        for mine, its in zip(member.values(), local.parameters, strict=True):
            torch.testing.assert_close(mine, its.detach(), rtol=0, atol=1e-5)


async def assert_replicas_are_equal(rig: Rig, member: Member) -> None:
    for block in member.blocks:
        holders = [rig.servers[name] for name in rig.entries[block].holders]
        proof = member.exchange.commit
        states = {digest(brought_up(each.parameter_block(block), proof)) for each in holders}
        assert len(states) == 1


async def pushed(rig: Rig, members: list[Member], gradients: list[Gradients]) -> None:
    """All norms are known, and nobody has voted."""
    for member, item in zip(members, gradients, strict=True):
        member.give(item)
    await together(*(member.exchange.push() for member in members))


VICTIMS: dict[str, Callable[[Rig], ServerId]] = {
    "a block's primary": lambda rig: rig.entries[BlockId(1)].primary,
    "a backup": lambda rig: rig.entries[BlockId(1)].in_sync[0],
    "the ledger's primary": lambda rig: rig.entries[LEDGER].primary,
}
MOMENTS = ["half pushed", "pushed", "half voted", "committed", "half read"]


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("victim", VICTIMS)
async def test_a_server_that_dies_changes_no_rounds_scale(victim: str, moment: str) -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"][1])
    async with Rig(servers=3, start_workers=2, replicas=2) as rig:
        members = await clipping(rig, 2, blueprint)
        await eventually(lambda: all(entry.in_sync for entry in rig.entries.values()))
        local = clipped_locally(blueprint)
        one, other = members
        for number in range(4):
            gradients = [blueprint.random(10 * number + rank) for rank in range(2)]
            local.step([(item, 1.0) for item in gradients])
            if number != 1:
                await round_of(members, gradients)
                continue
            one.give(gradients[0])
            left: list[Any] = [one.start(rest(one, push=True))]
            if moment != "half pushed":
                other.give(gradients[1])
                await other.exchange.push()
                await eventually(lambda: len(rig.ledger.votes) == 1)
            if moment in ("committed", "half read"):
                await other.exchange.vote()
            if moment == "half read":
                await left[0]
            await rig.kill_server(VICTIMS[victim](rig))
            if moment == "half pushed":
                other.give(gradients[1])
            if moment in ("committed", "half read"):
                await other.exchange.read()
            else:
                await rest(other, push=moment == "half pushed")
            await together(*(done(task) for task in left))
        assert_close(members, local)
        await assert_replicas_are_equal(rig, one)


async def rest(member: Member, *, push: bool) -> None:
    """The rest of a round, with its push or from the vote on."""
    if push:
        await member.exchange.push()
    commit = await member.exchange.vote()
    while commit is None:
        await member.exchange.push()
        commit = await member.exchange.vote()
    await member.exchange.pull(commit)


@pytest.mark.parametrize("moment", ["pushed", "half voted"])
async def test_the_norm_is_that_of_those_who_are_left_when_a_worker_dies(moment: str) -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"][1])
    async with Rig(servers=2, start_workers=3, replicas=2) as rig:
        members = await clipping(rig, 3, blueprint)
        local = clipped_locally(blueprint)
        gradients: list[Gradients] = [blueprint.random(rank) for rank in range(3)]
        gradients[1] = blueprint.full(100.0)
        await pushed(rig, members, gradients)
        one, dying, other = members
        voting = []
        if moment == "half voted":
            voting = [one.start(rest(one, push=False))]
            await eventually(lambda: len(rig.ledger.votes) == 1)
        await rig.kill(dying)
        voting = voting or [one.start(rest(one, push=False))]
        await together(*(done(task) for task in voting), rest(other, push=False))
        local.step([(gradients[0], 1.0), (gradients[2], 1.0)])
        assert_close([one, other], local)


async def test_a_worker_that_joins_clips_with_the_others_from_its_first_round() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"][1])
    async with Rig(servers=2, start_workers=1, replicas=2) as rig:
        (first,) = await clipping(rig, 1, blueprint)
        local = clipped_locally(blueprint)
        await round_of([first], [blueprint.random(1)])
        local.step([(blueprint.random(1), 1.0)])
        joining = rig.worker(blueprint)
        joining.exchange.clipping.bound = BOUND
        admitted = joining.start(joining.join())
        await eventually(lambda: bool(rig.ledger.joining))
        await round_of([first], [blueprint.random(2)])
        local.step([(blueprint.random(2), 1.0)])
        await admitted
        gradients = [blueprint.random(3), blueprint.full(5.0)]
        await round_of([first, joining], gradients)
        local.step([(item, 1.0) for item in gradients])
        assert_close([first, joining], local)


async def test_a_round_without_its_slowest_worker_has_the_norm_of_those_it_counts() -> None:
    blueprint = Blueprint(options=OPTIMIZERS["sgd"][1])
    async with Rig(start_workers=3, backup_workers=1) as rig:
        members = await clipping(rig, 3, blueprint)
        local = clipped_locally(blueprint)
        gradients = [blueprint.random(1), blueprint.random(2)]
        await round_of(members[:2], gradients)
        local.step([(item, 1.0) for item in gradients])
        await members[2].step(blueprint.full(1000.0))
        assert_close(members, local)


async def test_a_round_takes_the_bound_of_its_lowest_rank() -> None:
    blueprint = Blueprint(options={"lr": 1.0}, zeros=True)
    async with Rig(start_workers=2) as rig:
        members = await clipping(rig, 2, blueprint)
        members[1].exchange.clipping.bound = None
        await round_of(members, [blueprint.full(1.0)] * 2)
        moved = torch.cat([item.flatten() for item in members[1].values()])
        assert float(moved.norm()) == pytest.approx(BOUND, rel=1e-5)


# -- what it costs ------------------------------------------------------------------------------


async def frames_of(bound: float | None) -> Counter[tuple[str, int, bool]]:
    """What a worker asked in two rounds: kinds, flags, and whether the answer said anything."""
    blueprint = Blueprint()
    frames: Counter[tuple[str, int, bool]] = Counter()
    async with Rig(start_workers=1, replicas=1) as rig:
        (member,) = await rig.workers(1, blueprint)
        member.exchange.clipping.bound = bound
        ask = member.client.call

        async def counted(call: Call) -> Reply:
            reply = await ask(call)
            frames[call.kind.name, call.flags, bool(reply.meta)] += 1
            return reply

        member.client.call = counted  # type: ignore[method-assign]
        for seed in range(2):
            await member.step(blueprint.random(seed))
    return frames


async def test_who_does_not_clip_sends_and_gets_nothing_for_it_and_who_does_no_frame() -> None:
    without, clipped = await frames_of(None), await frames_of(BOUND)
    pushes = without["PUSH", 0, False]
    assert pushes > 0
    assert clipped.pop(("PUSH", 8, True)) == pushes
    del without["PUSH", 0, False]
    assert without == clipped
