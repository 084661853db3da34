"""What servers send to each other: snapshots, ops and proofs."""

from __future__ import annotations

from elasticps.core.ids import LEDGER, BlockId, JobKey, PlanEpoch
from elasticps.wire.frame import Kind, Status
from elasticps.wire.messages import OpMeta, Prepared, encode
from elasticps.wire.replicated import OpRow, ProofMeta
from tests.integration.bad_requests.frames import (
    BLOCK,
    BLOCK_BYTES,
    FAR,
    GARBAGE,
    NEXT,
    VALUE,
    Bad,
    op,
    ops,
    snapshot,
    state,
)

OF_SERVERS = {
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
