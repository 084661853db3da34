"""What a primary tells its replicas: together, ahead of the next op, by memory on one machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from elasticps.core.ids import BlockId
from elasticps.server.parameter_block import ParameterBlock
from elasticps.server.replicated_block import ReplicatedBlock
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.wire.connection import Connection
from tests.support.bits import step_all
from tests.support.wire import eventually

LARGE = Blueprint(shapes=((60_000,), (5,)), options={"lr": 0.5}, block_bytes=120_000)
"""Two blocks of more than 64 KiB, which are worth lending, and a small one."""
LARGE_BYTES = 240_000
ADAM = Blueprint(
    shapes=LARGE.shapes, optimizer="adamw", options={"lr": 0.1}, block_bytes=LARGE.block_bytes
)
SMALL = Blueprint(shapes=((5,), (3, 2)) * 20, options={"lr": 0.5})


def copies(rig: Rig, block: BlockId) -> list[ParameterBlock]:
    """The block's replicas, the primary's first."""
    return [rig.servers[name].parameter_block(block) for name in rig.entries[block].holders]


def is_settled(rig: Rig) -> bool:
    return all(len(entry.in_sync) == 1 and not entry.learners for entry in rig.entries.values())


def is_applied(rig: Rig, member: Member, round_: int) -> bool:
    """Has every replica of every block applied the round?"""
    return all(
        copy._replica.round == round_ for block in member.blocks for copy in copies(rig, block)
    )


def assert_same(rig: Rig, member: Member) -> None:
    """All replicas have what the member has read, to the bit."""
    blocks = {block: copies(rig, block) for block in member.blocks}
    for one, other in blocks.values():
        assert torch.equal(one.tensor.value, other.tensor.value)
    held = torch.cat([one.tensor.value.view(-1) for one, _ in blocks.values()])
    assert torch.equal(held, torch.cat([each.reshape(-1) for each in member.values()]))


def sent(rig: Rig, transport: str) -> int:
    """Bytes that servers have sent to each other; by shared memory, to workers too."""
    return sum(
        server.server.peers.traffic.by_transport[transport].sent for server in rig.servers.values()
    )


def ways(rig: Rig) -> list[Connection]:
    return [way for each in rig.servers.values() for way in each.server.peers._connections.values()]


async def lending(rig: Rig, members: list[Member], blueprint: Blueprint, local: LocalRun) -> None:
    """Take rounds until a gradient is lent for each large block."""
    await eventually(lambda: is_settled(rig))
    while not all(_lends(rig, block) for block in members[0].blocks[:2]):
        await rounds(rig, members, blueprint, local, 1)


def _lends(rig: Rig, block: BlockId) -> bool:
    streams = rig.primary(block).server.table._streams
    loans = [each for (_, name), each in streams._loans.items() if name == block]
    return any(loan.shown_to and not loan.is_over for each in loans for loan in each._loans)


async def rounds(
    rig: Rig, members: list[Member], blueprint: Blueprint, local: LocalRun, count: int
) -> None:
    for _ in range(count):
        seed = 100 * (rig.ledger.round + 1)
        gradients = [blueprint.random(seed + number) for number in range(len(members))]
        await step_all(members, gradients)
        local.step([(each, 1.0) for each in gradients])


def assert_as(member: Member, local: LocalRun) -> None:
    for got, want in zip(member.values(), local.parameters, strict=True):
        torch.testing.assert_close(got, want.detach(), rtol=0, atol=1e-5)


@contextmanager
def unproven() -> Iterator[None]:
    """Replicas that apply a round only with the next op, as one that is slow would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplicatedBlock, "prove", lambda *_: False)
        yield


@pytest.mark.parametrize("blueprint", [LARGE, ADAM], ids=["sgd", "adamw"])
@pytest.mark.parametrize("count", [1, 2])
async def test_gradients_for_a_replica_of_this_machine_are_lent_and_not_sent(
    count: int, blueprint: Blueprint
) -> None:
    async with Rig(2, start_workers=count, replicas=2) as rig:
        members = await rig.workers(count, blueprint)
        local = LocalRun(blueprint)
        await lending(rig, members, blueprint, local)
        for _ in range(4):
            round_ = rig.ledger.round
            await eventually(lambda round_=round_: is_applied(rig, members[0], round_))
            over, lent = sent(rig, "unix"), sent(rig, "shm")
            await rounds(rig, members, blueprint, local, 1)
            assert sent(rig, "unix") - over < LARGE_BYTES / 10
            assert sent(rig, "shm") - lent > LARGE_BYTES * (count + 0.9), "values alone"
        await eventually(lambda: is_applied(rig, members[0], rig.ledger.round))
        assert_same(rig, members[0])
        assert_as(members[0], local)


async def test_a_replica_applies_a_round_before_the_next_one_comes() -> None:
    async with Rig(2, replicas=2, local=False) as rig:
        (member,) = await rig.workers(1, LARGE)
        await eventually(lambda: is_settled(rig))
        await member.step(LARGE.random(1))
        await eventually(lambda: is_applied(rig, member, 1))
        assert_same(rig, member)


async def test_a_gradient_that_a_slow_replica_reads_yet_is_not_written_over() -> None:
    async with Rig(2, replicas=2) as rig:
        members = await rig.workers(1, LARGE)
        local = LocalRun(LARGE)
        await lending(rig, members, LARGE, local)
        with unproven():
            await rounds(rig, members, LARGE, local, 6)
        await rounds(rig, members, LARGE, local, 1)
        await eventually(lambda: is_applied(rig, members[0], rig.ledger.round))
        assert_same(rig, members[0])
        assert_as(members[0], local)


@pytest.mark.parametrize("is_slow", [False, True], ids=["proven", "unproven"])
async def test_a_round_whose_gradients_were_lent_survives_their_primary(is_slow: bool) -> None:
    async with Rig(3, start_workers=2, replicas=2) as rig:
        members = await rig.workers(2, LARGE)
        local = LocalRun(LARGE)
        await lending(rig, members, LARGE, local)
        with pytest.MonkeyPatch.context() as patch:
            if is_slow:
                patch.setattr(ReplicatedBlock, "prove", lambda *_: False)
            gradients = [LARGE.random(7), LARGE.random(8)]
            for member, each in zip(members, gradients, strict=True):
                member.give(each)
            await together(*(member.exchange.push() for member in members))
            await rig.kill_server(rig.entries[members[0].blocks[0]].primary)
            await together(*(member.exchange.vote() for member in members))
            await together(*(member.exchange.read() for member in members))
            local.step([(each, 1.0) for each in gradients])
            assert_as(members[0], local)
        await rounds(rig, members, LARGE, local, 2)
        assert_as(members[0], local)
        await eventually(lambda: is_settled(rig))
        await rounds(rig, members, LARGE, local, 1)
        await eventually(lambda: is_applied(rig, members[0], rig.ledger.round))
        assert_same(rig, members[0])


async def test_after_a_cut_between_servers_gradients_are_lent_anew() -> None:
    async with Rig(2, replicas=2) as rig:
        members = await rig.workers(1, LARGE)
        local = LocalRun(LARGE)
        await lending(rig, members, LARGE, local)
        for _ in range(3):
            for way in ways(rig):
                way.abort()
            await rounds(rig, members, LARGE, local, 2)
        await lending(rig, members, LARGE, local)
        await rounds(rig, members, LARGE, local, 2)
        await eventually(lambda: is_applied(rig, members[0], rig.ledger.round))
        assert_same(rig, members[0])
        assert_as(members[0], local)


@pytest.mark.parametrize("mode", ["bounded", "async"])
async def test_pushes_that_are_applied_at_once_are_lent_too(mode: str) -> None:
    job: dict[str, Any] = {"consistency": mode}
    if mode == "bounded":
        job["staleness"] = 2
    async with Rig(2, replicas=2, **job) as rig:
        (member,) = await rig.workers(1, LARGE)
        local = LocalRun(LARGE)
        await eventually(lambda: is_settled(rig))
        for number in range(12):
            await member.step(LARGE.random(number))
            local.step([(LARGE.random(number), 1.0)])
        assert any(_lends(rig, block) for block in member.blocks)
        await eventually(
            lambda: all(
                one.replication.version == other.replication.version
                for one, other in (copies(rig, block) for block in member.blocks)
            )
        )
        assert_same(rig, member)
        assert_as(member, local)


async def test_where_a_replica_takes_no_memory_gradients_are_sent() -> None:
    async with Rig(2, replicas=2) as rig:
        for server in rig.servers.values():
            for session in server.sessions.values():
                session._following._passing = None
        members = await rig.workers(1, LARGE)
        local = LocalRun(LARGE)
        await eventually(lambda: is_settled(rig))
        for server in rig.servers.values():
            for session in server.sessions.values():
                session._following._passing = None
        await rounds(rig, members, LARGE, local, 3)
        assert not any(_lends(rig, block) for block in members[0].blocks)
        assert_as(members[0], local)


async def test_ops_of_many_small_blocks_share_frames() -> None:
    async with Rig(2, start_workers=2, replicas=2) as rig:
        members = await rig.workers(2, SMALL)
        local = LocalRun(SMALL)
        await eventually(lambda: is_settled(rig))
        await rounds(rig, members, SMALL, local, 1)
        before = sum(way._in_flight._last for way in ways(rig))
        await rounds(rig, members, SMALL, local, 4)
        assert sum(way._in_flight._last for way in ways(rig)) - before <= 4 * 16
        await eventually(lambda: is_applied(rig, members[0], rig.ledger.round))
        assert_same(rig, members[0])
        assert_as(members[0], local)
