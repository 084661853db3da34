"""Pushes and pulls through shared memory: the same numbers, and nobody harmed but who lies."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from elasticps.core.ids import BlockId, Round, ServerId, WorkerId
from elasticps.errors import PeerUnavailable
from elasticps.server.gradient_mean import Mean
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB, RigServer
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import (
    Place,
    PullMeta,
    PushMeta,
    RegionsOffer,
    RegionsShown,
    decode,
    encode,
)
from elasticps.wire.region_socket import show
from elasticps.wire.regions import Region
from elasticps.worker.client import Client
from tests.support.bits import hold, staged
from tests.support.counted import MODES
from tests.support.wire import PATIENCE_S, eventually

BLUEPRINT = Blueprint(options={"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01})
STEPS = 3
SWITCHED_OFF = "the test says so"


def shared_bytes(rig: Rig) -> tuple[int, int]:
    """What the servers have read and written in regions."""
    found = [each.server.table.load().tally.traffic["shm"] for each in rig.servers.values()]
    return sum(each.received for each in found), sum(each.sent for each in found)


async def trained(mode: dict[str, Any], replicas: int, **options: Any) -> Sequence[torch.Tensor]:
    """The parameters after some steps that do not depend on who is faster."""
    count = 1 if mode.get("consistency") in (None, "async", "bounded") else 2
    blueprint = Blueprint(options=BLUEPRINT.options, **options)
    async with Rig(servers=2, start_workers=count, replicas=replicas, **mode) as rig:
        members = await rig.workers(count, blueprint)
        for step in range(STEPS):
            given = [blueprint.random(10 * step + rank) for rank in range(count)]
            steps = zip(members, given, strict=True)
            await together(*(member.step(item, weight=1.0 + step) for member, item in steps))
        shm = shared_bytes(rig)
        assert (min(shm) > 0) == (not members[0].client.why_not_share)
        return members[0].values()


@pytest.mark.parametrize("replicas", [1, 2])
@pytest.mark.parametrize("mode", MODES)
async def test_a_run_is_the_same_to_the_bit_through_memory_and_through_sockets(
    mode: str, replicas: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    through_memory = await trained(MODES[mode], replicas)
    monkeypatch.setattr(Client, "why_not_share", SWITCHED_OFF)
    through_sockets = await trained(MODES[mode], replicas)
    pairs = zip(through_memory, through_sockets, strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


async def test_half_precision_and_optimizers_of_plugins_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for options in ({"dtype": torch.bfloat16}, {"optimizer": "lamb"}):
        found = []
        for why_not in ("", SWITCHED_OFF):
            monkeypatch.setattr(Client, "why_not_share", why_not)
            async with Rig(servers=1) as rig:
                blueprint = Blueprint(options={"lr": 0.1}, **options)  # type: ignore[arg-type]
                (member,) = await rig.workers(1, blueprint)
                await member.step(blueprint.random(5))
                await member.step(blueprint.random(6))
                found.append(member.values())
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


async def test_of_coded_pushes_the_values_alone_are_shared() -> None:
    async with Rig(servers=1, codec="fp16") as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await member.step(BLUEPRINT.random(1))
        received, sent = shared_bytes(rig)
        assert (received, sent > 0) == (0, True)
        assert member.exchange.transport == "shared memory (values; a codec codes the gradients)"


async def test_a_worker_says_what_it_uses_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        assert member.exchange.transport == "shared memory"
    async with Rig(servers=1, local=False) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        assert member.exchange.transport == "TCP (another machine)"
    monkeypatch.setattr(os, "memfd_create", _refused)
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await member.step(BLUEPRINT.random(1))
        assert member.exchange.transport == "Unix socket (no memfd: Operation not permitted)"


def _refused(*_: object) -> int:
    raise PermissionError(1, os.strerror(1))


async def test_without_the_second_socket_the_first_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("elasticps.wire.region_socket.RegionSocket.is_open", False)
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        local.step([(BLUEPRINT.random(1), 1.0)])
        await member.step(BLUEPRINT.random(1))
        assert shared_bytes(rig) == (0, 0)
        assert "takes no regions" in member.exchange.transport
        for mine, its in zip(member.values(), local.parameters, strict=True):
            torch.testing.assert_close(mine, its.detach())


# -- the worker's memory ------------------------------------------------------------------------


async def test_gradients_and_parameters_are_in_the_regions_once() -> None:
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await member.step(BLUEPRINT.random(1))
        shared = member.exchange.shared
        assert shared._values is not None
        assert shared._gradients is not None
        for parameter in member.parameters:
            gradient = parameter.grad
            assert gradient is not None
            assert _lies_in(shared._values, parameter)
            assert _lies_in(shared._gradients, gradient)
            assert torch.equal(gradient, BLUEPRINT.random(1)[_index(member, parameter)])


def _lies_in(region: Region, tensor: torch.Tensor) -> bool:
    return region.mapping.offset_of(tensor.data_ptr(), tensor.nbytes) is not None


def _index(member: Member, parameter: torch.Tensor) -> int:
    return [item is parameter for item in member.parameters].index(True)


async def test_parameters_that_share_their_memory_with_others_stay_where_they_are() -> None:
    async with Rig(servers=1) as rig:
        member = rig.worker(BLUEPRINT)
        whole = torch.zeros(3000)
        member.parameters[0].data = whole[:1500]
        seen = member.parameters[1].detach().numpy()
        await member.join()
        await member.step(BLUEPRINT.random(1))
        assert torch.equal(whole[:1500], member.parameters[0].detach())
        assert torch.equal(torch.from_numpy(seen), member.parameters[1].detach())


async def test_backward_puts_large_gradients_where_they_are_pushed_from() -> None:
    blueprint = Blueprint(shapes=((300, 100), (4,)), block_bytes=1 << 16)
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, blueprint)
        region = member.exchange.shared._gradients
        assert region is not None
        await member.step(blueprint.random(1))  # from then on it is known that they are pushed
        large, small = member.parameters
        large.grad = small.grad = None
        (3 * large.sum() + small.sum()).backward()
        assert large.grad is not None
        assert _lies_in(region, large.grad)
        large.sum().backward()
        assert bool((large.grad == 4).all()), "a second backward adds to the first one's"
        large.grad = None
        large.sum().backward()
        assert bool((large.grad == 1).all())


# -- servers that do not answer -----------------------------------------------------------------


def deposed(rig: Rig, block: BlockId) -> tuple[RigServer, ServerId]:
    """The block's primary, and the other server, which is to lead in its place."""
    primary = rig.primary(block)
    (other,) = set(rig.servers) - {primary.id}
    return primary, other


async def paused(rig: Rig, member: Member, server: RigServer) -> list[Connection]:
    """The server reads nothing any more of what the member sends, nor hears of plans."""
    server.child.stop()
    paused = server.connections_from(ServerId(str(member.id)))
    for conn in paused:
        conn.pause_reading()
    return paused


async def test_a_server_that_wakes_up_writes_a_pull_to_pages_that_nobody_looks_at() -> None:
    async with Rig(servers=2, replicas=2) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await eventually(lambda: all(len(each.in_sync) == 1 for each in rig.entries.values()))
        await member.step(BLUEPRINT.random(1))
        block = member.blocks[0]
        sleeper, other = deposed(rig, block)
        conns = await paused(rig, member, sleeper)
        reading = member.start(member.exchange.read())
        await eventually(lambda: member.client.is_asking(block))
        rig.pin(rig.entries, other)
        await reading
        before = sleeper.server.table.load().tally.traffic["shm"].sent
        for parameter in member.parameters:
            parameter.data.fill_(7)
        for conn in conns:
            conn.resume_reading()
        load = sleeper.server.table.load
        await eventually(lambda: load().tally.traffic["shm"].sent > before)
        assert all(bool((each == 7).all()) for each in member.values())
        await member.step(BLUEPRINT.random(2))
        local = LocalRun(BLUEPRINT)
        local.step([(BLUEPRINT.random(1), 1.0)])
        local.step([(BLUEPRINT.random(2), 1.0)])
        for mine, its in zip(member.values(), local.parameters, strict=True):
            torch.testing.assert_close(mine, its.detach())


async def test_a_server_that_wakes_up_reads_the_push_as_it_was_when_it_was_sent() -> None:
    async with Rig(servers=2, replicas=2) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        await eventually(lambda: all(len(each.in_sync) == 1 for each in rig.entries.values()))
        await member.step(BLUEPRINT.random(1))
        block = member.blocks[0]
        sleeper, other = deposed(rig, block)
        conns = await paused(rig, member, sleeper)
        stepping = member.start(member.step(BLUEPRINT.random(2)))
        await eventually(lambda: member.client.is_asking(block))
        rig.pin(rig.entries, other)
        await stepping
        for parameter in member.parameters:  # the next backward
            assert parameter.grad is not None
            parameter.grad.fill_(9)
        before = sleeper.server.table.load().tally.traffic["shm"].received
        for conn in conns:
            conn.resume_reading()
        load = sleeper.server.table.load
        await eventually(lambda: load().tally.traffic["shm"].received > before)
        held = sleeper.parameter_block(block)
        read = held._prepared.gradient
        assert read is not None
        assert not bool((read == 9).any())


async def test_a_worker_that_dies_with_a_staged_push_takes_nothing_with_it() -> None:
    async with Rig(servers=1, start_workers=2) as rig:
        dying, living = await rig.workers(2, BLUEPRINT)
        dying.give(BLUEPRINT.random(1))
        await hold(rig, dying, dying.exchange._memory)
        assert staged(rig, dying) == len(dying.blocks)
        await rig.kill(dying)
        await living.step(BLUEPRINT.random(2))
        local = LocalRun(BLUEPRINT)
        local.step([(BLUEPRINT.random(2), 1.0)])
        for mine, its in zip(living.values(), local.parameters, strict=True):
            assert torch.equal(mine, its.detach())
        (server,) = rig.servers.values()
        mine = [session for conn, session in server.sessions.items() if conn.closed]
        assert mine
        assert not any(session._regions._values for session in mine)


async def test_the_mean_of_large_blocks_is_made_nowhere_but_where_it_is_applied(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Mean] = []
    monkeypatch.setattr(Mean, "whole", property(made.append))
    blueprint = Blueprint(shapes=((50_000,),), block_bytes=1 << 20)
    async with Rig(servers=1, start_workers=2) as rig:
        members = await rig.workers(2, blueprint)
        given = [blueprint.random(rank) for rank in (1, 2)]
        await together(*(each.step(item) for each, item in zip(members, given, strict=True)))
        assert min(shared_bytes(rig)) > 0
        local = LocalRun(blueprint)
        local.step([(item, 1.0) for item in given])
        assert torch.equal(members[0].values()[0], local.parameters[0].detach())
    assert not made


async def test_a_gradient_may_change_once_its_push_alone_is_answered() -> None:
    """Nothing is pulled after it, so that nothing says when the round was applied."""
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        member.give(BLUEPRINT.random(1))
        assert await member.exchange.agree(pushes=True)
        for parameter in member.parameters:
            assert parameter.grad is not None
            parameter.grad.fill_(9)
        await member.exchange.read()
        local = LocalRun(BLUEPRINT)
        local.step([(BLUEPRINT.random(1), 1.0)])
        for mine, its in zip(member.values(), local.parameters, strict=True):
            torch.testing.assert_close(mine, its.detach())


# -- workers that lie ---------------------------------------------------------------------------

STRANGER = WorkerId(1_000_000)
BLOCK = BlockId(2)
BLOCK_BYTES = 4 * 476
SIZE = 1 << 13
NUMBER = 77
PLACES = {
    "of a region that nobody showed": (Place(5, 0, BLOCK_BYTES), "region"),
    "beyond the region": (Place(NUMBER, SIZE - 64, BLOCK_BYTES), "offset"),
    "before the region": (Place(NUMBER, -64, BLOCK_BYTES), "offset"),
    "far beyond": (Place(NUMBER, 1 << 62, BLOCK_BYTES), "offset"),
    "between two elements": (Place(NUMBER, 2, BLOCK_BYTES), "offset"),
    "of another length": (Place(NUMBER, 0, BLOCK_BYTES - 4), "nbytes"),
}


async def sharing(conn: Connection, region: Region) -> None:
    """Show ``region`` as the values of the caller of ``conn``."""
    header = Header(Kind.SHARE, job=JOB, worker=STRANGER)
    reply = await conn.request(header, timeout_s=PATIENCE_S)
    offer = decode(reply.meta, RegionsOffer)
    shown = RegionsShown(offer.token, 0, NUMBER)
    await asyncio.to_thread(show, offer.path, shown, [region.descriptor])


@pytest.fixture
def region() -> Any:
    made = Region.make("test", SIZE, others_write=True)
    yield made
    made.close()


@pytest.mark.parametrize("name", PLACES)
async def test_a_place_that_is_none_closes_its_connection_and_nothing_else(
    name: str, region: Region
) -> None:
    place, field = PLACES[name]
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        (server,) = rig.servers.values()
        async with server.spoken_to(STRANGER, local=True) as conn:
            await sharing(conn, region)
            header = Header(
                Kind.PULL,
                job=JOB,
                block=BLOCK,
                plan_epoch=rig.entries[BLOCK].epoch,
                worker=STRANGER,
            )
            with pytest.raises(PeerUnavailable):
                await conn.request(header, encode(PullMeta(None, {}, place)), timeout_s=PATIENCE_S)
        await eventually(lambda: bool(server.errors))
        assert server.errors[0].field == field
        server.forget_closed()
        await member.step(BLUEPRINT.random(1))
        assert not bool(region.mapping.tensor.any())


async def test_a_good_place_is_written_to(region: Region) -> None:
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        (server,) = rig.servers.values()
        async with server.spoken_to(STRANGER, local=True) as conn:
            await sharing(conn, region)
            header = Header(
                Kind.PULL,
                job=JOB,
                block=BLOCK,
                plan_epoch=rig.entries[BLOCK].epoch,
                worker=STRANGER,
            )
            meta = encode(PullMeta(None, {}, Place(NUMBER, 64, BLOCK_BYTES)))
            reply = await conn.request(header, meta, timeout_s=PATIENCE_S)
        assert reply.header.status is Status.OK
        assert reply.payload is None
        found = region.mapping.tensor[64 : 64 + BLOCK_BYTES].view(torch.float32)
        assert torch.equal(found, member.values()[0][-476:])


async def test_values_cannot_be_pushed_from_and_gradients_not_written_to(region: Region) -> None:
    async with Rig(servers=1) as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        (server,) = rig.servers.values()
        async with server.spoken_to(STRANGER, local=True) as conn:
            await sharing(conn, region)
            header = Header(
                Kind.PUSH,
                job=JOB,
                block=BLOCK,
                plan_epoch=rig.entries[BLOCK].epoch,
                worker=STRANGER,
                round=Round(1),
            )
            generation = member.exchange.member_turn.generation
            place = Place(NUMBER, 0, BLOCK_BYTES)
            meta = PushMeta(generation, 1.0, {}, 1, None, place=place)
            with pytest.raises(PeerUnavailable):
                await conn.request(header, encode(meta), timeout_s=PATIENCE_S)
        await eventually(lambda: bool(server.errors))
        assert server.errors[0].field == "region"
        server.forget_closed()


async def test_a_token_is_good_once_and_no_other_is_good(region: Region) -> None:
    async with Rig(servers=1) as rig:
        await rig.workers(1, BLUEPRINT)
        (server,) = rig.servers.values()
        async with server.spoken_to(STRANGER, local=True) as conn:
            header = Header(Kind.SHARE, job=JOB, worker=STRANGER)
            reply = await conn.request(header, timeout_s=PATIENCE_S)
            offer = decode(reply.meta, RegionsOffer)
            descriptors = [region.descriptor]
            for token, works in ((bytes(16), False), (offer.token, True), (offer.token, False)):
                shown = RegionsShown(token, 0, NUMBER)
                if works:
                    await asyncio.to_thread(show, offer.path, shown, descriptors)
                else:
                    with pytest.raises(PeerUnavailable, match="no connection here"):
                        await asyncio.to_thread(show, offer.path, shown, descriptors)


async def test_a_region_larger_than_the_job_is_refused() -> None:
    large = Region.make("test", 1 << 30, others_write=True)
    async with Rig(servers=1) as rig:
        await rig.workers(1, BLUEPRINT)
        (server,) = rig.servers.values()
        async with server.spoken_to(STRANGER, local=True) as conn:
            with pytest.raises(PeerUnavailable, match="limit"):
                await sharing(conn, large)
    large.close()


async def test_regions_are_not_asked_for_over_the_network() -> None:
    async with Rig(servers=1) as rig:
        await rig.workers(1, BLUEPRINT)
        (server,) = rig.servers.values()
        async with server.spoken_to(STRANGER) as conn:
            header = Header(Kind.SHARE, job=JOB, worker=STRANGER)
            with pytest.raises(PeerUnavailable):
                await conn.request(header, timeout_s=PATIENCE_S)
        await eventually(lambda: bool(server.errors))
        assert server.errors[0].field == "kind"
        server.forget_closed()
