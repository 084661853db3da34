"""What a shard server is sent that it must not take: one request or connection ends, no more."""

from __future__ import annotations

import asyncio
import gc
import math
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
import torch

from elasticps.core.audit import Verdict
from elasticps.core.commands import Attend, Inspect, Observe, Register, Vote
from elasticps.core.ids import (
    LEDGER,
    BlockId,
    Generation,
    JobKey,
    PlanEpoch,
    Round,
    Seq,
    WorkerId,
)
from elasticps.core.ranges import DataSpec
from elasticps.core.replica import Commit, RoundOp
from elasticps.errors import JobFailed, PeerUnavailable
from elasticps.server.session import Session
from elasticps.server.staging import Staging
from elasticps.server.tensor_block import MAX_STATE_FACTOR
from elasticps.testing.members import Blueprint, LocalRun, Member, together
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import CLUSTER, JOB, RigServer
from elasticps.wire.connection import Connection
from elasticps.wire.frame import FLAG_EMPTY, Header, Kind, Status, pack
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import (
    HelloMeta,
    OpMeta,
    Prepared,
    PullMeta,
    PushMeta,
    SnapshotMeta,
    StateMeta,
    TensorMeta,
    encode,
)
from elasticps.wire.replicated import OpRow, OpsMeta, ProofMeta
from tests.support.checkers import brought_up, digest
from tests.support.wire import PATIENCE_S, eventually, raw_stream

BLUEPRINT = Blueprint(options={"lr": 0.1, "momentum": 0.9})
BLOCK = BlockId(2)
"""476 float32 elements: the second part of the first parameter."""
BLOCK_BYTES = 4 * 476
STRANGER = WorkerId(1_000_000)
GARBAGE = b"\x93\xc1garbage"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bad:
    """One frame and what must come of it: a status, or the field of the error that closes.

    ``to`` says which replica of the block it is sent to; ``epoch`` counts from the right one.
    """

    kind: Kind
    expect: Status | str
    meta: bytes = b""
    payload: bytes | None = None
    to: str = "primary"
    caller: object = STRANGER
    worker: WorkerId = STRANGER
    job: JobKey = JOB
    block: BlockId = BLOCK
    epoch: int = 0
    round: int = 2
    seq: int = 1
    flags: int = 0

    def header(self, rig: Rig) -> Header:
        epoch = rig.entries[self.block].epoch if self.block in rig.entries else 1
        return Header(
            self.kind,
            flags=self.flags,
            job=self.job,
            plan_epoch=PlanEpoch(epoch + self.epoch),
            block=self.block,
            worker=self.worker,
            seq=Seq(self.seq),
            round=Round(self.round),
        )


def push_meta(weight: float = 1.0, generation: int = 1, **hyper: Any) -> bytes:
    return encode(PushMeta(Generation(generation), weight, hyper, 1, None))


def state(dtype: str = "float32", shape: tuple[int, ...] = (476,), *more: TensorMeta) -> StateMeta:
    return StateMeta((TensorMeta("value", dtype, shape, BLOCK_BYTES), *more))


def command(message: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(message)


def snapshot(meta: StateMeta | None, prepared: Prepared | None = None) -> bytes:
    return encode(SnapshotMeta(version=5, history=0, state=meta, prepared=prepared))


NEXT = RoundOp(Round(2), Generation(1), ((STRANGER, Seq(1)),))


def op(round_: RoundOp | None = NEXT, *, version: int = 3, **more: Any) -> bytes:
    return encode(OpMeta(version=version, op=round_, **more))


def ops(*rows: OpRow) -> bytes:
    return encode(OpsMeta((OpMeta(version=0, op=NEXT),), rows))


VALUE = bytes(BLOCK_BYTES)
PULL = encode(PullMeta(None))
FAR = Commit(Round(9), Generation(1), ())
VOTE = command(Vote(STRANGER, Round(2), Generation(1)))

REQUESTS = {
    # before or instead of a proper hello
    "push before hello": Bad(kind=Kind.PUSH, caller="", payload=VALUE, expect="kind"),
    "pull before hello": Bad(kind=Kind.PULL, caller="", meta=PULL, expect="kind"),
    "hello of another cluster": Bad(
        kind=Kind.HELLO, caller="", meta=encode(HelloMeta("other", "7")), expect="cluster"
    ),
    "hello of nobody": Bad(
        kind=Kind.HELLO, caller="", meta=encode(HelloMeta(CLUSTER, "")), expect="cluster"
    ),
    "hello of garbage": Bad(kind=Kind.HELLO, caller="", meta=GARBAGE, expect="meta"),
    "a word of the control channel": Bad(kind=Kind.CONTROL, meta=GARBAGE, expect="kind"),
    # for somebody or something else
    "push for another worker": Bad(
        kind=Kind.PUSH, worker=WorkerId(7), meta=push_meta(), payload=VALUE, expect="worker"
    ),
    "pull of another job": Bad(kind=Kind.PULL, job=JobKey(99), meta=PULL, expect=Status.UNKNOWN),
    "push to another job": Bad(
        kind=Kind.PUSH, job=JobKey(99), meta=push_meta(), payload=VALUE, expect=Status.UNKNOWN
    ),
    "vote in another job": Bad(
        kind=Kind.LEDGER, job=JobKey(99), block=LEDGER, meta=VOTE, expect=Status.UNKNOWN
    ),
    "pull of no block": Bad(kind=Kind.PULL, block=BlockId(99), meta=PULL, expect=Status.UNKNOWN),
    "pull of the ledger": Bad(kind=Kind.PULL, block=LEDGER, meta=PULL, expect="block"),
    "vote at a block": Bad(kind=Kind.LEDGER, meta=VOTE, expect="block"),
    # pushes
    "push of too few bytes": Bad(
        kind=Kind.PUSH, meta=push_meta(), payload=VALUE[:-4], expect="payload_length"
    ),
    "push of too many bytes": Bad(
        kind=Kind.PUSH, meta=push_meta(), payload=VALUE + b"1234", expect="payload_length"
    ),
    "push of nothing": Bad(kind=Kind.PUSH, meta=push_meta(), expect="payload_length"),
    "push of garbage": Bad(kind=Kind.PUSH, meta=GARBAGE, payload=VALUE, expect="meta"),
    "push to the ledger": Bad(
        kind=Kind.PUSH, block=LEDGER, meta=push_meta(), payload=VALUE, expect="payload_length"
    ),
    "push of weight NaN": Bad(
        kind=Kind.PUSH, meta=push_meta(math.nan), payload=VALUE, expect=Status.REFUSED
    ),
    "push of weight 0": Bad(
        kind=Kind.PUSH, meta=push_meta(0.0), payload=VALUE, expect=Status.REFUSED
    ),
    "push of weight -1": Bad(
        kind=Kind.PUSH, meta=push_meta(-1.0), flags=FLAG_EMPTY, expect=Status.REFUSED
    ),
    "push of weight infinity": Bad(
        kind=Kind.PUSH, meta=push_meta(math.inf), payload=VALUE, expect=Status.REFUSED
    ),
    "push with an unknown option": Bad(
        kind=Kind.PUSH, meta=push_meta(speed=9), payload=VALUE, expect=Status.REFUSED
    ),
    "push for a round of the past": Bad(
        kind=Kind.PUSH, round=1, meta=push_meta(), payload=VALUE, expect=Status.CONFLICT
    ),
    "push for a round of the future": Bad(
        kind=Kind.PUSH, round=3, meta=push_meta(), payload=VALUE, expect=Status.CONFLICT
    ),
    "push of a round without a number": Bad(
        kind=Kind.PUSH, round=0, meta=push_meta(), payload=VALUE, expect=Status.CONFLICT
    ),
    "push of an old generation": Bad(
        kind=Kind.PUSH,
        meta=push_meta(generation=0),
        payload=VALUE,
        expect=Status.STALE_GENERATION,
    ),
    "push with the proof of a round to come": Bad(
        kind=Kind.PUSH,
        round=10,
        meta=encode(PushMeta(Generation(1), 1.0, {}, 1, FAR)),
        payload=VALUE,
        expect=Status.BEHIND,
    ),
    "push under an old epoch": Bad(
        kind=Kind.PUSH, epoch=-1, meta=push_meta(), payload=VALUE, expect=Status.FENCED
    ),
    "push under an epoch to come": Bad(
        kind=Kind.PUSH, epoch=1, meta=push_meta(), payload=VALUE, expect=Status.BEHIND
    ),
    "push to a backup": Bad(
        kind=Kind.PUSH, to="backup", meta=push_meta(), payload=VALUE, expect=Status.UNKNOWN
    ),
    # reads
    "pull of garbage": Bad(kind=Kind.PULL, meta=GARBAGE, expect="meta"),
    "pull with a payload": Bad(kind=Kind.PULL, meta=PULL, payload=VALUE, expect="payload_length"),
    "state with a payload": Bad(kind=Kind.STATE, payload=VALUE, expect="payload_length"),
    "pull of a round to come": Bad(
        kind=Kind.PULL,
        meta=encode(PullMeta(FAR)),
        expect=Status.BEHIND,
    ),
    "pull of a round of others": Bad(
        kind=Kind.PULL,
        meta=encode(PullMeta(Commit(Round(2), Generation(1), (STRANGER,)))),
        expect=Status.BEHIND,
    ),
    "pull of pushes that are not here": Bad(
        kind=Kind.PULL, meta=encode(PullMeta(None, {STRANGER: Seq(1)})), expect=Status.BEHIND
    ),
    "state of a round to come": Bad(
        kind=Kind.STATE, meta=encode(PullMeta(FAR)), expect=Status.BEHIND
    ),
    "state of garbage": Bad(kind=Kind.STATE, meta=GARBAGE, expect="meta"),
    "status of a round to come": Bad(
        kind=Kind.STATUS, meta=encode(PullMeta(FAR)), expect=Status.BEHIND
    ),
    "status of nothing": Bad(kind=Kind.STATUS, expect="meta"),
    # the ledger
    "a command of garbage": Bad(kind=Kind.LEDGER, block=LEDGER, meta=GARBAGE, expect="meta"),
    "a command of nothing": Bad(kind=Kind.LEDGER, block=LEDGER, expect="meta"),
    "a vote for another worker": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Vote(WorkerId(7), Round(2), Generation(1))),
        expect="worker",
    ),
    "a list of the living": Bad(
        kind=Kind.LEDGER, block=LEDGER, meta=command(Observe((), 1 << 40)), expect="worker"
    ),
    "an attendance for another worker": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Attend(WorkerId(7), Generation(1))),
        expect="worker",
    ),
    "an attendance of no member": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Attend(STRANGER, Generation(1))),
        expect=Status.OK,
    ),
    "an inspection of no member": Bad(
        kind=Kind.LEDGER, block=LEDGER, meta=command(Inspect(STRANGER)), expect=Status.OK
    ),
    "a vote of no member": Bad(kind=Kind.LEDGER, block=LEDGER, meta=VOTE, expect=Status.OK),
    "data without samples": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Register(STRANGER, DataSpec(0, 1, 1, 0))),
        expect=Status.OK,
    ),
    # values
    "a first value after the first round": Bad(
        kind=Kind.INIT, meta=encode(state()), payload=VALUE, expect=Status.CONFLICT
    ),
    "a first value of nothing": Bad(kind=Kind.INIT, meta=encode(state()), expect="payload_length"),
    "a first value of garbage": Bad(kind=Kind.INIT, meta=GARBAGE, payload=VALUE, expect="meta"),
    "a first value that is too much": Bad(
        kind=Kind.INIT,
        meta=encode(state()),
        payload=bytes(MAX_STATE_FACTOR * BLOCK_BYTES + (64 << 10) + 1),
        expect="payload_length",
    ),
    # from servers that do not lead
    "a snapshot for a primary": Bad(
        kind=Kind.SNAPSHOT, meta=snapshot(state()), payload=VALUE, expect=Status.UNKNOWN
    ),
    "an op for a primary": Bad(kind=Kind.OP, meta=op(), payload=VALUE, expect=Status.UNKNOWN),
    "a snapshot under an old epoch": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        epoch=-1,
        meta=snapshot(state()),
        payload=VALUE,
        expect=Status.FENCED,
    ),
    "an op under an old epoch": Bad(
        kind=Kind.OP,
        to="backup",
        epoch=-1,
        meta=op(),
        payload=VALUE,
        expect=Status.FENCED,
    ),
    "a snapshot under an epoch to come": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        epoch=1,
        meta=snapshot(state()),
        payload=VALUE,
        expect=Status.BEHIND,
    ),
    "a snapshot of another job": Bad(
        kind=Kind.SNAPSHOT,
        job=JobKey(99),
        meta=snapshot(state()),
        payload=VALUE,
        expect=Status.BEHIND,
    ),
    # from one that leads, as far as the backup can tell
    "a snapshot of garbage": Bad(
        kind=Kind.SNAPSHOT, to="backup", meta=GARBAGE, payload=VALUE, expect="meta"
    ),
    "a snapshot without numbers": Bad(
        kind=Kind.SNAPSHOT, to="backup", meta=snapshot(None), payload=VALUE, expect="state"
    ),
    "a snapshot of another shape": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        meta=snapshot(state(shape=(477,))),
        payload=VALUE,
        expect="nbytes",
    ),
    "a snapshot without its prepared gradient": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        meta=snapshot(state(), Prepared(NEXT, {}, BLOCK_BYTES + 1)),
        payload=VALUE,
        expect="prepared",
    ),
    "a snapshot with half of its prepared gradient": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        meta=snapshot(state(), Prepared(NEXT, {}, BLOCK_BYTES // 2)),
        payload=VALUE + VALUE[: BLOCK_BYTES // 2],
        expect="payload_length",
    ),
    "a snapshot with less than no prepared gradient": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        meta=snapshot(state(), Prepared(NEXT, {}, -4)),
        payload=VALUE,
        expect="prepared",
    ),
    "a snapshot with a prepared option that is unknown": Bad(
        kind=Kind.SNAPSHOT,
        to="backup",
        meta=snapshot(state(), Prepared(NEXT, {"speed": 9}, 0)),
        payload=VALUE,
        expect="hyper",
    ),
    "a snapshot of a ledger that is none": Bad(
        kind=Kind.SNAPSHOT, to="backup", block=LEDGER, meta=snapshot(None), expect="ledger"
    ),
    "an op of garbage": Bad(kind=Kind.OP, to="backup", meta=GARBAGE, payload=VALUE, expect="meta"),
    "an op after a gap": Bad(
        kind=Kind.OP,
        to="backup",
        meta=op(version=9),
        payload=VALUE,
        expect=Status.CONFLICT,
    ),
    "an op that was applied": Bad(
        kind=Kind.OP,
        to="backup",
        meta=op(version=2),
        payload=VALUE,
        expect=Status.OK,
    ),
    "an op of too few bytes": Bad(
        kind=Kind.OP,
        to="backup",
        meta=op(),
        payload=VALUE[:-4],
        expect="payload_length",
    ),
    "an op of nothing": Bad(kind=Kind.OP, to="backup", meta=op(None), payload=VALUE, expect="op"),
    "an op after a round that is not here": Bad(
        kind=Kind.OP, to="backup", meta=op(commit=FAR), payload=VALUE, expect="op"
    ),
    "an op with an unknown option": Bad(
        kind=Kind.OP,
        to="backup",
        meta=op(hyper={"speed": 9}),
        payload=VALUE,
        expect="hyper",
    ),
    "an op of a first value without numbers": Bad(
        kind=Kind.OP,
        to="backup",
        meta=op(None, initial=state()),
        expect="payload_length",
    ),
    "an op of a ledger that is none": Bad(
        kind=Kind.OP,
        to="backup",
        block=LEDGER,
        meta=encode(OpMeta(version=1 << 40, command=GARBAGE)),
        expect=Status.CONFLICT,
    ),
    "ops of garbage": Bad(kind=Kind.OPS, to="backup", meta=GARBAGE, expect="meta"),
    "ops of garbage with a payload": Bad(
        kind=Kind.OPS, to="backup", meta=GARBAGE, payload=VALUE, expect="meta"
    ),
    "ops of nothing": Bad(kind=Kind.OPS, to="backup", meta=ops(), expect="rows"),
    "an op without a body": Bad(
        kind=Kind.OPS, to="backup", meta=ops(OpRow(BLOCK, PlanEpoch(1), 3, body=1)), expect="rows"
    ),
    "an op of less than no bytes": Bad(
        kind=Kind.OPS, to="backup", meta=ops(OpRow(BLOCK, PlanEpoch(1), 3, 0, -4)), expect="rows"
    ),
    "ops without their bytes": Bad(
        kind=Kind.OPS,
        to="backup",
        meta=ops(OpRow(BLOCK, PlanEpoch(1), 3, 0, BLOCK_BYTES)),
        expect="payload_length",
    ),
    "ops of more bytes than they say": Bad(
        kind=Kind.OPS,
        to="backup",
        meta=ops(OpRow(BLOCK, PlanEpoch(1), 3, 0, BLOCK_BYTES)),
        payload=VALUE + VALUE,
        expect="payload_length",
    ),
    "ops of too many blocks": Bad(
        kind=Kind.OPS,
        to="backup",
        meta=ops(*[OpRow(BLOCK, PlanEpoch(1), 3, 0)] * 1025),
        expect="rows",
    ),
    "an op in memory that was never lent": Bad(
        kind=Kind.OPS,
        to="backup",
        meta=ops(OpRow(BLOCK, PlanEpoch(1), 3, 0, BLOCK_BYTES, loan=7)),
        expect=Status.OK,
    ),
    "a proof of garbage": Bad(kind=Kind.PROOF, to="backup", meta=GARBAGE, expect="meta"),
    "a proof for no block": Bad(
        kind=Kind.PROOF, to="backup", meta=encode(ProofMeta(FAR, ())), expect="rows"
    ),
    "a proof of a round that is not here": Bad(
        kind=Kind.PROOF,
        to="backup",
        meta=encode(ProofMeta(FAR, ((BLOCK, PlanEpoch(1)), (BlockId(99), PlanEpoch(1))))),
        expect=Status.OK,
    ),
    "memory lent over the network": Bad(kind=Kind.LEND, to="backup", expect="kind"),
}


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
