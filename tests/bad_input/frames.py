"""Frames that a shard server is sent, and all that none of them may change."""

from __future__ import annotations

import asyncio
import struct
from dataclasses import dataclass

from elasticps.core.ids import LEDGER, BlockId, Generation, JobKey, PlanEpoch, Round, Seq, WorkerId
from elasticps.core.replica import RoundOp
from elasticps.testing.members import Blueprint
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import CLUSTER, JOB, RigServer
from elasticps.wire.frame import (
    FLAG_EMPTY,
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    Header,
    Kind,
    Status,
    checksum,
    pack,
    unpack,
)
from elasticps.wire.messages import HelloMeta, OpMeta, PushMeta, StateMeta, TensorMeta, encode
from tests.support.checkers import digest
from tests.support.wire import PATIENCE_S

BLUEPRINT = Blueprint(options={"lr": 0.1, "momentum": 0.9})
BLOCK = BlockId(2)
ELEMENTS = 476
VALUE = bytes(4 * ELEMENTS)
MALLORY, BYSTANDER = WorkerId(1_000_000), WorkerId(2_000_000)
HELLO = HelloMeta(CLUSTER, str(MALLORY))
EMPTY_OPTIONS, DEEP = b"\x80", b"\x91" * 100_000 + b"\xc0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A frame after a proper hello, and what must come of it: the field of the WireError that
    closes its connection, or the status of its answer.

    ``overwritten`` bytes (offset, bytes) of the header get it a right checksum, unless ``damaged``.
    ``epoch`` counts from the right one. ``to_backup``: not to the block's primary.
    """

    gives: str | Status
    kind: Kind = Kind.PUSH
    meta: bytes = b""
    payload: bytes = b""
    overwritten: tuple[int, bytes] = (0, b"")
    damaged: bool = False
    hello: HelloMeta | None = HELLO
    job: JobKey = JOB
    worker: WorkerId = MALLORY
    epoch: int = 0
    seq: int = 1
    round: int = 2
    flags: int = 0
    to_backup: bool = False

    def frame(self, epoch: int) -> bytes:
        header = Header(
            self.kind,
            flags=self.flags | (FLAG_PAYLOAD_CHECKSUM if self.payload else 0),
            job=self.job,
            plan_epoch=PlanEpoch(epoch + self.epoch),
            block=BLOCK,
            worker=self.worker,
            seq=Seq(self.seq),
            round=Round(self.round),
            payload_length=0 if self.flags & FLAG_EMPTY else len(self.payload),
            payload_checksum=checksum(self.payload),
        )
        packed = bytearray(pack(header, self.meta))
        offset, data = self.overwritten
        packed[offset : offset + len(data)] = data
        if not self.damaged:
            fixed = bytes(packed[: HEADER_SIZE - 8])
            packed[HEADER_SIZE - 8 : HEADER_SIZE] = struct.pack("<Q", checksum(fixed + self.meta))
        return bytes(packed) + self.payload


def push(weight: float = 1.0, generation: int = 1, **hyper: object) -> bytes:
    return encode(PushMeta(Generation(generation), weight, dict(hyper), 1, None))


def with_option(coded: bytes) -> bytes:
    """A push's meta whose options are these bytes of msgpack."""
    return push().replace(EMPTY_OPTIONS, coded, 1)


def first_value(dtype: str = "float32", shape: tuple[int, ...] = (ELEMENTS,)) -> bytes:
    return encode(StateMeta((TensorMeta("value", dtype, shape, len(VALUE)),)))


OP = OpMeta(version=9, op=RoundOp(Round(2), Generation(1), ((MALLORY, Seq(1)),)))


def everything(rig: Rig) -> list[object]:
    """What no bad input may change: values, optimizer state, dedup tables, and the ledger."""
    blocks = [block for block in rig.entries if block != LEDGER]
    replicas = [
        digest(rig.servers[server].parameter_block(block))
        for block in blocks
        for server in rig.entries[block].holders
    ]
    return [*replicas, rig.ledger.round, rig.ledger.members]


def values(rig: Rig) -> list[bytes]:
    blocks = [block for block in rig.entries if block != LEDGER]
    return [rig.primary(block).parameter_block(block).tensor.value_bytes() for block in blocks]


def server_of(rig: Rig, row: Row) -> RigServer:
    entry = rig.entries[BLOCK]
    return rig.servers[entry.in_sync[0] if row.to_backup else entry.primary]


async def sent(server: RigServer, row: Row, epoch: int) -> Status | None:
    """The status of the answer, or None where the connection was closed instead."""
    reader, writer = await asyncio.open_connection(server.tcp.host, server.tcp.port)
    try:
        if row.hello is not None:
            writer.write(pack(Header(Kind.HELLO), encode(row.hello)))
        writer.write(row.frame(epoch))
        answers = 1 + (row.hello is not None)
        async with asyncio.timeout(PATIENCE_S):
            while answers:
                header = unpack(await reader.readexactly(HEADER_SIZE))
                await reader.readexactly(header.meta_length + header.payload_length)
                answers -= 1
        return header.status
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    finally:
        writer.close()
