"""What a primary tells one peer of many blocks in one frame: their next ops, or rounds that are
committed. It says what single frames would say, in this order, and is answered block by block.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from elasticps.core.ids import BlockId, PlanEpoch
from elasticps.core.replica import Commit
from elasticps.errors import WireError
from elasticps.wire.groups import MAX_GROUP_BYTES, MAX_PIECES, aligned
from elasticps.wire.messages import OpMeta


class OpRow(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block's next op: ``body`` is its place among the bodies, whose version is not its own.

    ``nbytes``: of what would be its payload; ``loan``: the number of the memory of the sender's
    that has it, 0 where it is in this payload.
    """

    block: BlockId
    plan_epoch: PlanEpoch
    version: int
    body: int
    nbytes: int = 0
    loan: int = 0


class OpsMeta(msgspec.Struct, frozen=True, array_like=True):
    """Ops of one job. What is the same for many of them is said once."""

    bodies: tuple[OpMeta, ...]
    rows: tuple[OpRow, ...]


class ProofMeta(msgspec.Struct, frozen=True, array_like=True):
    """A round that is committed: these blocks, each with its epoch, may apply it."""

    commit: Commit
    blocks: tuple[tuple[BlockId, PlanEpoch], ...]


class RepliesMeta(msgspec.Struct, frozen=True, array_like=True):
    """A status for each block, in order."""

    statuses: bytes


def check_ops(meta: OpsMeta, payload_length: int) -> None:
    """Raise WireError for ops that break a limit, or that are not what the payload has."""
    _check_count(len(meta.rows))
    if any(row.nbytes < 0 or not 0 <= row.body < len(meta.bodies) for row in meta.rows):
        raise WireError("an op of no body, or of negative size", field="rows")
    if payload_length != payload_size(meta.rows):
        raise WireError(f"{payload_length} bytes for these ops", field="payload_length")
    if payload_length > MAX_GROUP_BYTES:
        raise WireError(
            f"ops of {payload_length} bytes",
            field="payload_length",
            limit=f"{MAX_GROUP_BYTES} bytes",
        )


def check_proof(meta: ProofMeta) -> None:
    """Raise WireError for a proof for no block, or for too many."""
    _check_count(len(meta.blocks))


def _check_count(count: int) -> None:
    if not 0 < count <= MAX_PIECES:
        raise WireError(f"{count} blocks in a frame", field="rows", limit=f"1 to {MAX_PIECES}")


def offsets(rows: Sequence[OpRow]) -> Iterator[int]:
    """Where each row's bytes begin in the payload."""
    start = 0
    for row in rows:
        yield start
        start += 0 if row.loan else aligned(row.nbytes)


def payload_size(rows: Sequence[OpRow]) -> int:
    return sum(aligned(row.nbytes) for row in rows if not row.loan)
