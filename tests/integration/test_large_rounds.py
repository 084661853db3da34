"""Large blocks in shared memory: a round by one request, and no mean that nobody needs."""

from __future__ import annotations

import asyncio
import threading

import pytest
import torch

from elasticps.core.ids import LEDGER, BlockId
from elasticps.errors import JobFailed
from elasticps.server.aside import StepAside
from elasticps.server.gradient_mean import Mean
from elasticps.server.group import Group as PartGroup
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


@pytest.mark.parametrize("sent", [False, True], ids=["placed", "sent"])
@pytest.mark.parametrize(
    ("replicas", "requests"),
    [(1, 1), (2, 5)],
    ids=["one server, one request", "two lead it: two pushes, a vote, two pulls"],
)
async def test_a_round_of_large_and_small_blocks_is_few_requests_and_equals_a_local_one(
    replicas: int, requests: int, sent: bool
) -> None:
    async with Rig(1, start_workers=2, replicas=replicas) as rig:
        members = await rig.workers(2, LARGE)
        if sent:
            for member in members:
                member.exchange.shared.turn_off("the test says so")
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


async def test_a_large_block_is_stepped_while_others_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    aside: list[str] = []
    step = StepAside.take_part

    def noted(self: StepAside, thread: int) -> None:
        aside.append(threading.current_thread().name)
        step(self, thread)

    monkeypatch.setattr(StepAside, "take_part", noted)
    async with Rig(1, start_workers=1) as rig:
        (member,) = await rig.workers(1, LARGE)
        member.exchange.shared.turn_off("the test says so")
        alone = LocalRun(LARGE)
        for number in range(3):
            await _step([member], alone, number)
        await _audited([member])
    assert "elasticps-step" in aside
    assert "elasticps-step" not in [each.name for each in threading.enumerate()]


async def test_an_optimizer_that_fails_aside_ends_its_job_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the test says so")

    async with Rig(1, start_workers=1) as rig:
        (member,) = await rig.workers(1, LARGE)
        member.exchange.shared.turn_off("the test says so")
        await _step([member], LocalRun(LARGE), 0)
        monkeypatch.setattr(torch.optim.SGD, "step", fail)
        with pytest.raises(JobFailed, match="the test says so"):
            await member.step(LARGE.random(1))


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


@pytest.mark.parametrize("values", [0, 1, 2])
async def test_a_primary_that_dies_amid_the_values_that_it_sends_leaves_none_torn_or_lost(
    values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    gives: list[BlockId] = []
    give = PartGroup._give

    async with Rig(2, start_workers=2, replicas=2) as rig:
        members = await rig.workers(2, LARGE)
        for member in members:
            member.exchange.shared.turn_off("the test says so")
        await eventually(lambda: all(len(each.in_sync) for each in rig.entries.values()))
        alone = LocalRun(LARGE)
        await _step(members, alone, 0)

        def cut_off(group: PartGroup, index: int, value: memoryview) -> None:
            if len(gives) < values:
                give(group, index, value)
            else:
                group._conn.abort()
            gives.append(group._requests[index].header.block)

        monkeypatch.setattr(PartGroup, "_give", cut_off)
        gradients = [LARGE.random(20 + rank) for rank in range(2)]
        steps = [m.start(m.step(g)) for m, g in zip(members, gradients, strict=True)]
        await eventually(lambda: len(gives) > values)
        monkeypatch.setattr(PartGroup, "_give", give)
        await rig.kill_server(rig.entries[gives[-1]].primary)
        await asyncio.gather(*steps)
        alone.step([(each, 1.0) for each in gradients])
        _same(members, alone)
        await _step(members, alone, 3)
        await _audited(members)


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
