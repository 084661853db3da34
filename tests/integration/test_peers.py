"""Peers over real sockets: fetches wait, come in parts, and end at once when the peer is gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import torch

from elasticps.core.ids import Generation, Round
from elasticps.errors import PeerUnavailable, UsageError
from elasticps.testing.members import Blueprint, Member
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import CLUSTER, JOB
from elasticps.wire.address import Address
from elasticps.wire.connection import connect
from elasticps.wire.frame import Header, Kind
from elasticps.wire.messages import FetchMeta, encode
from elasticps.worker.peers import PART_BYTES, Peers, Place
from elasticps.worker.shelf import MAX_ENTRIES, Shelf

FIRST = Round(1)


@asynccontextmanager
async def peers(rig: Rig, directory: Path, count: int = 2) -> AsyncIterator[list[Peers]]:
    """Members of the job that have met."""
    members: list[Member] = [rig.worker(Blueprint()) for _ in range(count)]
    async with AsyncExitStack() as stack:
        made = [
            await stack.enter_async_context(
                Peers(member.client, CLUSTER, JOB, member.id, Place("127.0.0.1", directory))
            )
            for member in members
        ]
        await asyncio.gather(*(member.join() for member in members))
        generation = rig.ledger.generation
        for each in made:
            await each.meet(generation)
        yield made


@pytest.mark.parametrize("same_machine", [True, False])
async def test_a_tensor_of_any_shape_arrives_as_it_was(
    tmp_path: Path, *, same_machine: bool
) -> None:
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "half": torch.randn(7, 9).to(torch.bfloat16),
        "numbers": torch.arange(10),
        "large": torch.randn(PART_BYTES // 4 * 2 + 12_345),
    }
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, other):
        if not same_machine:
            other._machine = "another"
        for key, tensor in tensors.items():
            one.shelf.put(FIRST, key, tensor)
        for key, tensor in tensors.items():
            found = await other.fetch(one.members[0], FIRST, key)
            assert found.dtype == tensor.dtype
            assert torch.equal(found, tensor)


async def test_a_fetch_waits_for_what_is_not_there_yet(tmp_path: Path) -> None:
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, other):
        fetching = asyncio.create_task(other.fetch(one.members[0], FIRST, "late"))
        await asyncio.sleep(0)
        one.shelf.put(FIRST, "other", torch.zeros(1))
        assert not fetching.done()
        one.shelf.put(FIRST, "late", torch.ones(3))
        assert torch.equal(await fetching, torch.ones(3))


async def test_bytes_to_and_from_peers_are_counted_on_both_sides(tmp_path: Path) -> None:
    tensor = torch.randn(100_000)
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, other):
        one.shelf.put(FIRST, "tensor", tensor)
        await other.fetch(one.members[0], FIRST, "tensor")
        most = tensor.nbytes + 4096  # two small requests and their answers are in it
        assert tensor.nbytes <= other.traffic.received["unix"] <= most
        assert one.traffic.sent == other.traffic.received
        assert one.traffic.received == other.traffic.sent


async def test_a_fetch_from_a_peer_that_goes_ends_at_once(tmp_path: Path) -> None:
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, other):
        peer = one.members[0]
        one.shelf.put(FIRST, "here", torch.ones(3))
        await other.fetch(peer, FIRST, "here")
        fetching = asyncio.create_task(other.fetch(peer, FIRST, "never"))
        await asyncio.sleep(0)
        await one.__aexit__()
        with pytest.raises(PeerUnavailable):
            await fetching
        with pytest.raises(PeerUnavailable):
            await other.fetch(peer, FIRST, "here")


async def test_what_is_of_an_earlier_round_is_gone_and_who_asks_is_told(tmp_path: Path) -> None:
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, other):
        peer = one.members[0]
        waiting = asyncio.create_task(other.fetch(peer, FIRST, "never"))
        one.shelf.put(FIRST, "old", torch.ones(3))
        await other.fetch(peer, FIRST, "old")
        one.shelf.put(Round(2), "new", torch.ones(3))
        with pytest.raises(PeerUnavailable, match="over"):
            await waiting
        with pytest.raises(PeerUnavailable, match="over"):
            await other.fetch(peer, FIRST, "old")


async def test_a_generation_that_is_over_is_not_met(tmp_path: Path) -> None:
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, _):
        with pytest.raises(PeerUnavailable, match="over"):
            await one.meet(Generation(rig.ledger.generation + 1))


async def test_a_shelf_is_bounded_and_takes_nothing_of_an_earlier_round() -> None:
    shelf = Shelf()
    for number in range(MAX_ENTRIES):
        shelf.put(Round(2), str(number), torch.zeros(0))
    with pytest.raises(UsageError, match="limit"):
        shelf.put(Round(2), "more", torch.zeros(0))
    with pytest.raises(UsageError, match="over"):
        shelf.put(Round(1), "old", torch.zeros(0))
    shelf.put(Round(3), "new", torch.zeros(0))


@pytest.mark.parametrize(
    "header",
    [
        Header(Kind.PUSH, job=JOB),
        Header(Kind.FETCH, job=JOB),  # before hello
    ],
)
async def test_a_caller_that_breaks_the_rules_loses_its_connection_and_nobody_else(
    tmp_path: Path, header: Header
) -> None:
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path) as (one, other):
        address = Address.parse(one._notes[one.members[0]].unix)
        async with await connect(address, timeout_s=5) as stranger:
            with pytest.raises(PeerUnavailable):
                await stranger.request(header, encode(FetchMeta("x", 0, 1)), timeout_s=20)
        one.shelf.put(FIRST, "here", torch.ones(3))
        assert torch.equal(await other.fetch(one.members[0], FIRST, "here"), torch.ones(3))


async def test_the_socket_of_a_killed_worker_is_removed_by_the_next(tmp_path: Path) -> None:
    stale = tmp_path / "peer-4194305-1.sock"  # no process has a number so large
    stale.touch()
    async with Rig(start_workers=2) as rig, peers(rig, tmp_path):
        assert not stale.exists()
        assert len(list(tmp_path.glob("peer-*.sock"))) == 2
    assert list(tmp_path.iterdir()) == []
