"""What a shard server is sent that it must not take: one request or connection ends, no more."""

from __future__ import annotations

import asyncio
import gc
import math

import msgspec
import pytest
import torch

from elasticps.core.audit import Verdict
from elasticps.core.ids import LEDGER
from elasticps.errors import JobFailed, PeerUnavailable
from elasticps.server.session import Session
from elasticps.server.staging import Staging
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import CLUSTER, RigServer
from elasticps.wire.connection import Connection
from elasticps.wire.frame import FLAG_EMPTY, Header, Kind, Status, pack
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import HelloMeta, StateMeta, TensorMeta, encode
from tests.integration.bad_requests.frames import (
    BLOCK,
    BLOCK_BYTES,
    STRANGER,
    VALUE,
    Bad,
    push_meta,
    state,
)
from tests.integration.bad_requests.of_servers import OF_SERVERS
from tests.integration.bad_requests.of_workers import OF_WORKERS
from tests.support.checkers import brought_up, digest
from tests.support.wire import PATIENCE_S, eventually, raw_stream

BLUEPRINT = Blueprint(options={"lr": 0.1, "momentum": 0.9})
REQUESTS = {**OF_WORKERS, **OF_SERVERS}


def server_of(rig: Rig, bad: Bad) -> RigServer:
    entry = rig.entries.get(bad.block, rig.entries[BLOCK])
    return rig.servers[entry.primary if bad.to == "primary" else entry.in_sync[0]]


async def send(conn: Connection, rig: Rig, bad: Bad) -> Reply | None:
    """The answer, or None when the connection was closed instead."""
    try:
        return await conn.request(bad.header(rig), bad.meta, bad.payload, timeout_s=PATIENCE_S)
    except PeerUnavailable:
        assert conn.closed
        return None


async def assert_turned_away(rig: Rig, bad: Bad) -> None:
    server = server_of(rig, bad)
    sessions = len(server.listeners[0].connections)
    async with server.spoken_to(bad.caller) as conn:
        reply = await send(conn, rig, bad)
        if isinstance(bad.expect, Status):
            assert reply is not None, server.errors
            assert reply.header.status is bad.expect
        else:
            assert reply is None
            assert [error.field for error in server.errors] == [bad.expect]
    await eventually(lambda: len(server.listeners[0].connections) == sessions)


def assert_nothing_waits(rig: Rig) -> None:
    """No server keeps a gradient, a request or a payload for anybody."""
    for server in rig.servers.values():
        assert not server.receives
        for block in rig.entries:
            hosted = server.replica(block)
            assert hosted is not None
            assert hosted.replication._waiting == []
            if block == LEDGER:
                host = server.ledger_host()
                assert (host._waiting, host._answers) == ({}, {})
                assert host._attending.keys() <= set(rig.alive)
            else:
                block_here = server.parameter_block(block)
                assert block_here._staging == Staging()
                assert block_here._replica.staged == {}


async def step(members: list[Member], local: LocalRun, seed: int) -> None:
    gradients = [BLUEPRINT.random(seed + rank) for rank in range(len(members))]
    steps = [member.step(item) for member, item in zip(members, gradients, strict=True)]
    await together(*steps)
    local.step([(item, 1.0) for item in gradients])


def assert_right(rig: Rig, members: list[Member], local: LocalRun) -> None:
    for member in members:
        for mine, its in zip(member.values(), local.parameters, strict=True):
            torch.testing.assert_close(mine, its.detach(), rtol=0, atol=1e-6)
    for block, entry in rig.entries.items():
        replicas = [rig.servers[server].replica(block) for server in entry.holders]
        digests = {digest(brought_up(item, rig.ledger.last)) for item in replicas if item}
        assert len(digests) == 1


async def in_sync(rig: Rig) -> None:
    await eventually(lambda: all(len(entry.holders) == 2 for entry in rig.entries.values()))


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_bad_request_is_turned_away_and_disturbs_nobody(name: str) -> None:
    async with Rig(servers=2, start_workers=1, replicas=2) as rig:
        members = await rig.workers(1, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        await in_sync(rig)
        await step(members, local, 10)
        await assert_turned_away(rig, REQUESTS[name])
        await step(members, local, 20)
        await step(members, local, 30)
        assert_right(rig, members, local)
        assert_nothing_waits(rig)
        assert await members[0].exchange.audit() == Verdict(3 * len(members[0].blocks))


INITIAL = {
    "shape x dtype beyond its bytes": (state(shape=(477,)), "nbytes"),
    "shape x dtype below its bytes": (state("float16"), "nbytes"),
    "a shape that overflows": (state(shape=(1 << 40, 1 << 40)), "shape"),
    "a negative shape": (state(shape=(-476,)), "shape"),
    "another dtype of the same size": (state("int32"), "tensors"),
    "a dtype that torch lacks": (state("float33"), "dtype"),
    "a dtype that is a function": (state("load"), "dtype"),
    "bytes left over": (StateMeta((TensorMeta("value", "uint8", (4,), 4),)), "payload_length"),
    "no value": (StateMeta((TensorMeta("momentum", "float32", (476,), BLOCK_BYTES),)), "tensors"),
    "two values": (state("float32", (476,), TensorMeta("value", "uint8", (0,), 0)), "tensors"),
    "an unknown option": (
        msgspec.structs.replace(state(), hyper={"speed": 9}),
        "hyper",
    ),
}


@pytest.mark.parametrize("name", INITIAL)
async def test_a_first_value_that_does_not_fit_is_turned_away_whole(name: str) -> None:
    meta, field = INITIAL[name]
    bad = Bad(kind=Kind.INIT, meta=encode(meta), payload=b"\x01" * BLOCK_BYTES, expect=field)
    async with Rig(servers=2, start_workers=1, replicas=2) as rig:
        members = await rig.workers(1, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        await in_sync(rig)
        await assert_turned_away(rig, bad)
        await step(members, local, 10)
        assert_right(rig, members, local)
        assert_nothing_waits(rig)


async def test_a_push_without_gradient_that_carries_one_is_not_a_frame() -> None:
    header = Header(Kind.PUSH, flags=FLAG_EMPTY, block=BLOCK)
    empty = bytearray(pack(header, push_meta()))
    empty[64:72] = BLOCK_BYTES.to_bytes(8, "little")
    async with Rig(servers=1) as rig:
        members = await rig.workers(1, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        (server,) = rig.servers.values()
        async with raw_stream(server.tcp) as stream:
            stream.write(empty)
            await eventually(lambda: [error.field for error in server.errors] != [])
        assert server.errors[0].field == "payload_length"
        await step(members, local, 10)
        assert_right(rig, members, local)


async def test_a_worker_in_the_job_that_asks_wrongly_goes_on_afterwards() -> None:
    async with Rig(servers=2, start_workers=2, replicas=2) as rig:
        members = await rig.workers(2, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        await in_sync(rig)
        await step(members, local, 10)
        me = members[1].id
        for name in ("push of weight NaN", "push with an unknown option", "push of nothing"):
            bad = REQUESTS[name]
            for server in rig.servers.values():
                server.errors.clear()
            turned = Bad(
                kind=bad.kind,
                meta=bad.meta,
                payload=bad.payload,
                expect=bad.expect,
                caller=me,
                worker=me,
                seq=2,
            )
            await assert_turned_away(rig, turned)
            await step(members, local, 20)
            await step(members, local, 30)
            assert_right(rig, members, local)
        assert_nothing_waits(rig)


async def test_the_refusal_of_a_weight_reaches_the_script() -> None:
    async with Rig() as rig:
        (member,) = await rig.workers(1, BLUEPRINT)
        with pytest.raises(JobFailed, match="weight nan: must be finite and above 0"):
            await member.step(BLUEPRINT.random(1), weight=math.nan)


async def test_a_payload_that_breaks_off_leaves_nothing_behind() -> None:
    async with Rig(servers=1) as rig:
        members = await rig.workers(1, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        (server,) = rig.servers.values()
        bad = Bad(kind=Kind.PUSH, expect="", round=1)
        hello = pack(Header(Kind.HELLO), encode(HelloMeta(CLUSTER, str(STRANGER))))
        header = msgspec.structs.replace(bad.header(rig), payload_length=BLOCK_BYTES)
        async with raw_stream(server.tcp) as stream:
            stream.write(hello + pack(header, push_meta()) + VALUE[:100])
            await eventually(lambda: server.receives)
            await step(members, local, 10)
        await eventually(lambda: not server.receives)
        await step(members, local, 20)
        assert_right(rig, members, local)
        assert_nothing_waits(rig)


async def test_a_thousand_bad_requests_leave_no_session_and_no_memory() -> None:
    async with Rig(servers=2, start_workers=1, replicas=2) as rig:
        members = await rig.workers(1, BLUEPRINT)
        local = LocalRun(BLUEPRINT)
        await in_sync(rig)
        await step(members, local, 10)
        assert_right(rig, members, local)
        bad = [item for item in REQUESTS.values() if item.kind is not Kind.LEDGER]
        before, connections = kept(), count(rig)
        for _ in range(20):
            await asyncio.gather(*(_unheard(rig, item) for item in bad))
        await step(members, local, 20)
        await eventually(lambda: count(rig) == connections)
        for server in rig.servers.values():
            server.forget_closed()
        assert_right(rig, members, local)
        assert kept() == before
        assert_nothing_waits(rig)


async def _unheard(rig: Rig, bad: Bad) -> None:
    async with server_of(rig, bad).spoken_to(bad.caller) as conn:
        await send(conn, rig, bad)


def count(rig: Rig) -> int:
    return sum(len(server.listeners[0].connections) for server in rig.servers.values())


def kept() -> dict[str, int]:
    """How many sessions, connections and tensors are alive."""
    gc.collect()
    kinds = [type(item) for item in gc.get_objects()]
    return {kind.__name__: kinds.count(kind) for kind in (Session, Connection, torch.Tensor)}
