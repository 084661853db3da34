"""Large blocks in shared memory: a round by one request, and no mean that nobody needs."""

from __future__ import annotations

import asyncio

import pytest
import torch

from elasticps.core.ids import LEDGER
from elasticps.server.gradient_mean import Mean
from elasticps.server.joint_step import SMALL_BYTES
from elasticps.server.tensor_block import TensorBlock
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.waiting import eventually

LARGE = Blueprint(
    shapes=((400_000,), (7, 9), (500_000,), ()),
    options={"lr": 0.5, "momentum": 0.9},
    block_bytes=800_000,
)


@pytest.mark.parametrize(
    ("replicas", "requests"),
    [(1, 1), (2, 5)],
    ids=["one server, one request", "two lead it: two pushes, a vote, two pulls"],
)
async def test_a_round_of_large_and_small_blocks_is_few_requests_and_equals_a_local_one(
    replicas: int, requests: int
) -> None:
    async with Rig(1, start_workers=2, replicas=replicas) as rig:
        members = await rig.workers(2, LARGE)
        if replicas > 1:
            await rig.start_server()
            await eventually(lambda: all(len(e.in_sync) for e in rig.entries.values()))
        alone = LocalRun(LARGE)
        for step in range(3):
            before = [_frames(member) for member in members]
            await _step(members, alone, step)
            asked = [_frames(m) - b for m, b in zip(members, before, strict=True)]
            assert step == 0 or max(asked) <= requests, "a block went by itself"
        await _audited(members)


async def test_workers_that_send_their_blocks_otherwise_make_the_same_rounds() -> None:
    async with Rig(2, start_workers=2) as rig:
        members = await rig.workers(2, LARGE)
        members[1].exchange.shared.turn_off("the test says so")
        alone = LocalRun(LARGE)
        for step in range(3):
            await _step(members, alone, step)
        await _audited(members)


async def test_a_mean_of_large_gradients_is_summed_nowhere_but_where_it_is_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    summed: list[Mean] = []
    whole = Mean.whole.func

    def noted(mean: Mean) -> torch.Tensor:
        summed.append(mean)
        return whole(mean)

    monkeypatch.setattr(Mean, "whole", property(noted))
    async with Rig(1, start_workers=2) as rig:
        members = await rig.workers(2, LARGE)
        alone = LocalRun(LARGE)
        await _step(members, alone, 0)
    assert not summed
    assert max(each.nbytes for each in LARGE.random(0)) > SMALL_BYTES


async def test_a_rounds_values_are_given_to_all_its_workers_as_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copied: list[int] = []
    write = TensorBlock.write_value

    def noted(block: TensorBlock, target: torch.Tensor) -> None:
        copied.append(block.nbytes)
        write(block, target)

    monkeypatch.setattr(TensorBlock, "write_value", noted)
    async with Rig(1, start_workers=2) as rig:
        members = await rig.workers(2, LARGE)
        alone = LocalRun(LARGE)
        for step in range(3):
            copied.clear()
            await _step(members, alone, step)
        assert not copied, "a value was read once more to be copied"
        await _audited(members)


async def test_a_worker_that_dies_while_another_waits_leaves_it_its_large_blocks_whole() -> None:
    async with Rig(1, start_workers=2) as rig:
        one, two = await rig.workers(2, LARGE)
        alone = LocalRun(LARGE)
        await _step([one, two], alone, 0)
        mine = LARGE.random(5)
        waiting = one.start(one.step(mine))
        await eventually(lambda: one.client.is_asking(LEDGER))
        await rig.kill(two)
        await waiting
        alone.step([(mine, 1.0)])
        _same([one], alone)
        await _step([one], alone, 1)
        await _audited([one])


async def _step(members: list[Member], alone: LocalRun, step: int) -> None:
    gradients = [LARGE.random(10 * step + rank) for rank in range(len(members))]
    await together(*(m.step(g) for m, g in zip(members, gradients, strict=True)))
    alone.step([(each, 1.0) for each in gradients])
    _same(members, alone)


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
