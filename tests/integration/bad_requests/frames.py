"""One frame that a shard server must not take, and the parts that such frames are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from elasticps.core.commands import Vote
from elasticps.core.ids import BlockId, Generation, JobKey, PlanEpoch, Round, Seq, WorkerId
from elasticps.core.replica import Commit, RoundOp
from elasticps.testing.rig import Rig
from elasticps.testing.rig_server import JOB
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import (
    OpMeta,
    Prepared,
    PullMeta,
    PushMeta,
    SnapshotMeta,
    StateMeta,
    TensorMeta,
    encode,
)
from elasticps.wire.replicated import OpRow, OpsMeta

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
