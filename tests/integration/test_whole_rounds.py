"""A round by one request, where one server leads all of it; whatever fails, it counts once."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
import torch

from elasticps.core.commands import Vote
from elasticps.core.ids import LEDGER, BlockId, Generation, PlanEpoch, Round, WorkerId
from elasticps.errors import WireError
from elasticps.testing.members import Blueprint, Gradients, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.waiting import eventually
from elasticps.wire.frame import Header, Kind
from elasticps.wire.groups import GroupMeta, Piece
from elasticps.wire.messages import PullMeta, PushMeta
from elasticps.wire.whole_rounds import RoundMeta, check_round

SMALL = Blueprint(shapes=((5,), (3, 2), ()), options={"lr": 0.5, "momentum": 0.9})


@pytest.mark.parametrize("local", [True, False], ids=["shared memory", "payloads"])
@pytest.mark.parametrize("replicas", [1, 2])
async def test_a_step_on_one_server_is_one_request_and_equals_a_local_one(
    local: bool, replicas: int
) -> None:
    async with Rig(1, start_workers=2, local=local, replicas=replicas) as rig:
        members = await rig.workers(2, SMALL)
        if replicas > 1:
            await rig.start_server()
            await eventually(lambda: all(len(e.in_sync) for e in rig.entries.values()))
        alone = LocalRun(SMALL)
        for step in range(4):
            before = [_frames(member) for member in members]
            gradients = _gradients(step)
            await together(*(m.step(g) for m, g in zip(members, gradients, strict=True)))
            alone.step([(each, 1.0) for each in gradients])
            asked = [_frames(m) - b for m, b in zip(members, before, strict=True)]
            assert step == 0 or asked == [1, 1], "a part of a round went by itself"
        _same(members, alone)
        await _audited(members)


async def test_a_worker_that_dies_while_another_waits_leaves_it_a_round_of_its_own() -> None:
    async with Rig(1, start_workers=2) as rig:
        one, two = await rig.workers(2, SMALL)
        mine, _ = _gradients(0)
        waiting = one.start(one.step(mine))
        await eventually(lambda: one.client.is_asking(LEDGER))
        await rig.kill(two)
        await waiting
        alone = LocalRun(SMALL)
        alone.step([(mine, 1.0)])
        _same([one], alone)
        await _audited([one])


async def test_a_worker_that_leaves_with_the_round_ends_in_order_and_its_push_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That it is no member any more is told at once, and may be heard before the answer."""
    async with Rig(1, start_workers=2) as rig:
        leaver, stays = await rig.workers(2, SMALL)
        ask = leaver.client.rounds.ask

        async def ask_slowly(*arguments: Any) -> Any:
            told = await ask(*arguments)
            await asyncio.sleep(0.1)
            return told

        monkeypatch.setattr(leaver.client.rounds, "ask", ask_slowly)
        gradients = _gradients(0)
        await together(leaver.step(gradients[0], leaving=True), stays.step(gradients[1]))
        await stays.step(gradients[0])
        alone = LocalRun(SMALL)
        alone.step([(each, 1.0) for each in gradients])
        alone.step([(gradients[0], 1.0)])
        assert leaver.exchange.turn is None
        _same([stays], alone)
        await _audited([stays])


@pytest.mark.parametrize("moved", [LEDGER, BlockId(2)], ids=["the ledger", "a block"])
async def test_what_moves_while_a_round_waits_costs_and_doubles_no_push(moved: BlockId) -> None:
    async with Rig(1, start_workers=2) as rig:
        one, two = members = await rig.workers(2, SMALL)
        other = await rig.start_server()
        await rig.move_all(next(name for name in rig.servers if name != other))
        mine, others = _gradients(0)
        waiting = one.start(one.step(mine))
        await eventually(lambda: one.client.is_asking(LEDGER))
        await rig.move(moved, other)
        await two.step(others)
        await waiting
        alone = LocalRun(SMALL)
        alone.step([(mine, 1.0), (others, 1.0)])
        _same(members, alone)
        await _audited(members)


async def test_a_round_outlives_the_server_that_it_was_asked_of() -> None:
    async with Rig(1, start_workers=2, replicas=2) as rig:
        one, two = members = await rig.workers(2, SMALL)
        await rig.start_server()
        await eventually(lambda: all(len(e.in_sync) for e in rig.entries.values()))
        mine, others = _gradients(0)
        waiting = one.start(one.step(mine))
        await eventually(lambda: one.client.is_asking(LEDGER))
        await rig.kill_server(rig.entries[LEDGER].primary)
        await two.step(others)
        await waiting
        alone = LocalRun(SMALL)
        alone.step([(mine, 1.0), (others, 1.0)])
        _same(members, alone)
        await _audited(members)


async def test_an_answer_that_is_lost_is_asked_for_again_part_by_part() -> None:
    async with Rig(1, start_workers=1) as rig:
        [one] = await rig.workers(1, SMALL)
        alone = LocalRun(SMALL)
        for step in range(3):
            mine, _ = _gradients(step)
            one.give(mine)
            pushes = [one.exchange._push_call(each, _turn(one)) for each in one.exchange._memory]
            ballot = one.exchange._ballot(_turn(one))
            told = await one.exchange._blocks.whole_round(pushes, ballot, one.exchange._memory)
            assert told is not None, "the server has taken it all"
            assert await one.exchange.round(), "and nobody has heard of it"
            alone.step([(mine, 1.0)])
            _same([one], alone)
        await _audited([one])


def test_a_round_whose_parts_do_not_belong_together_is_refused() -> None:
    push = PushMeta(Generation(1), 1.0, {}, 1, None)
    pieces = (Piece(BlockId(1), PlanEpoch(1), 16),)
    whole = RoundMeta(
        GroupMeta(pieces, push=push),
        Vote(WorkerId(7), Round(1), Generation(1)),
        PlanEpoch(1),
        GroupMeta(pieces, pull=PullMeta()),
    )
    header = Header(Kind.ROUND, worker=WorkerId(7), payload_length=16)
    check_round(whole, header)
    replace = msgspec.structs.replace
    for broken, field in (
        (replace(whole, push=whole.pull), "push"),
        (replace(whole, pull=whole.push), "push"),
        (replace(whole, vote=Vote(WorkerId(8), Round(1), Generation(1))), "worker"),
        (replace(whole, push=replace(whole.push, pieces=())), "pieces"),
        (replace(whole, pull=replace(whole.pull, pieces=())), "pieces"),
    ):
        with pytest.raises(WireError) as caught:
            check_round(broken, header)
        assert caught.value.field == field


def _gradients(step: int) -> list[Gradients]:
    return [SMALL.random(10 + step), SMALL.random(20 + step)]


def _turn(member: Member) -> object:
    return member.exchange.member_turn


def _same(members: list[Member], alone: LocalRun) -> None:
    for member in members:
        for got, want in zip(member.values(), alone.parameters, strict=True):
            torch.testing.assert_close(got, want.detach())


async def _audited(members: list[Member]) -> None:
    for verdict in await asyncio.gather(*(member.exchange.audit() for member in members)):
        assert verdict.lost == verdict.duplicated == 0


def _frames(member: Member) -> int:
    """Requests that a worker has sent."""
    connections = member.client._pool._connections.values()
    return sum(each._in_flight._last for each in connections)
