"""What a primary elsewhere sends to the replicas here: snapshots, ops, and proofs of rounds."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from elasticps.core.ids import PlanEpoch
from elasticps.core.replication import Check
from elasticps.errors import WireError
from elasticps.server.hosted import STATUS_OF, Hosted, Request
from elasticps.server.replicated_block import ReplicatedBlock
from elasticps.server.table import Table
from elasticps.wire.frame import Kind, Status
from elasticps.wire.messages import (
    OpMeta,
    RegionsOffer,
    RegionsShown,
    SnapshotMeta,
    VersionMeta,
    decode,
    encode,
)
from elasticps.wire.region_socket import RegionSocket
from elasticps.wire.regions import map_foreign
from elasticps.wire.replicated import (
    OpRow,
    OpsMeta,
    ProofMeta,
    RepliesMeta,
    check_ops,
    check_proof,
    offsets,
)
from elasticps.wire.tensors import bytes_of

KINDS = frozenset({Kind.SNAPSHOT, Kind.OP, Kind.OPS, Kind.PROOF, Kind.LEND})


@dataclass(slots=True, eq=False)
class _Proving:
    """A PROOF whose blocks are dealt with one after the other."""

    request: Request
    meta: ProofMeta
    statuses: bytearray = field(default_factory=bytearray)


class Following:
    """One connection's part of it. ``received`` raises WireError for what breaks the stream."""

    def __init__(self, table: Table, passing: RegionSocket | None) -> None:
        self._table = table
        self._passing = passing
        self._tokens: list[bytes] = []
        self._proving: deque[_Proving] = deque()

    def received(self, request: Request, meta: bytes, payload: memoryview | None) -> None:
        header = request.header
        if header.kind is Kind.OPS:
            self._ops(request, decode(meta, OpsMeta), payload)
            return
        if header.kind is Kind.PROOF:
            self._prove(request, decode(meta, ProofMeta))
            return
        hosted = self._table.replica(header.job, header.block)
        if header.kind is Kind.LEND:
            self._lend(request, hosted)
        elif hosted is None or (header.payload_length > 0 and payload is None):
            # The peer leads under a plan that has not reached this server yet.
            request.answer(Status.BEHIND)
        elif header.kind is Kind.SNAPSHOT:
            _snapshot(hosted, request, meta, payload)
        else:
            op = decode(meta, OpMeta)
            status = _followed(hosted, header.plan_epoch, op, payload)
            request.answer(status, encode(VersionMeta(hosted.replication.version)))

    def _ops(self, request: Request, meta: OpsMeta, payload: memoryview | None) -> None:
        check_ops(meta, request.header.payload_length)
        if request.header.payload_length and payload is None:
            raise WireError("ops without their payload", field="payload_length")
        statuses = bytearray()
        for row, start in zip(meta.rows, offsets(meta.rows), strict=True):
            hosted = self._table.replica(request.header.job, row.block)
            op = msgspec.structs.replace(meta.bodies[row.body], version=row.version)
            if hosted is None:
                status = Status.BEHIND
            elif row.loan:
                status = self._lent(hosted, row, op)
            else:
                part = payload[start : start + row.nbytes] if payload and row.nbytes else None
                status = _followed(hosted, row.plan_epoch, op, part)
            statuses.append(status)
        request.answer(Status.OK, encode(RepliesMeta(bytes(statuses))))

    def _lent(self, hosted: Hosted, row: OpRow, op: OpMeta) -> Status:
        """An op whose payload lies in memory of the primary's."""
        loan = hosted.borrowed(row.loan) if isinstance(hosted, ReplicatedBlock) else None
        if loan is None or loan.nbytes != row.nbytes:
            return Status.CONFLICT
        if self._passing is not None:
            self._passing.traffic.received += row.nbytes
        return _followed(hosted, row.plan_epoch, op, bytes_of(loan.tensor), lent=True)

    def _lend(self, request: Request, hosted: Hosted | None) -> None:
        """Say where the primary can show memory; with nothing in the answer it cannot."""
        conn, passing = request.connection, self._passing
        if conn.where.transport != "unix":
            raise WireError("memory is lent over the network", field="kind", limit="a Unix socket")
        if passing is None or not passing.is_open or not isinstance(hosted, ReplicatedBlock):
            request.answer(Status.OK)
            return
        token = passing.expect(conn.peer_process(), partial(_take, hosted))
        self._tokens.append(token)
        request.answer(Status.OK, encode(RegionsOffer(passing.path, token)))

    def closed(self) -> None:
        """The connection is lost: what was offered over it is taken no more."""
        for token in self._tokens:
            if self._passing is not None:
                self._passing.forget(token)
        self._tokens.clear()

    def _prove(self, request: Request, meta: ProofMeta) -> None:
        """Have the blocks apply what is committed, one in each turn of the loop: others are served
        in between."""
        check_proof(meta)
        self._proving.append(_Proving(request, meta))
        if len(self._proving) == 1:
            asyncio.get_running_loop().call_soon(self._prove_next)

    def _prove_next(self) -> None:
        proving = self._proving[0]
        block, epoch = proving.meta.blocks[len(proving.statuses)]
        hosted = self._table.replica(proving.request.header.job, block)
        proven = False
        if isinstance(hosted, ReplicatedBlock):
            proven = hosted.prove(epoch, proving.meta.commit)
        proving.statuses.append(Status.OK if proven else Status.CONFLICT)
        if len(proving.statuses) == len(proving.meta.blocks):
            self._proving.popleft()
            replies = RepliesMeta(bytes(proving.statuses))
            proving.request.answer(Status.OK, encode(replies))
        if self._proving:
            asyncio.get_running_loop().call_soon(self._prove_next)


def _snapshot(hosted: Hosted, request: Request, meta: bytes, payload: memoryview | None) -> None:
    snapshot = decode(meta, SnapshotMeta)
    check = hosted.replication.check_snapshot(request.header.plan_epoch, snapshot.version)
    if check is Check.OK:
        hosted.install(snapshot, payload or memoryview(b""))
    request.answer(STATUS_OF[check], encode(VersionMeta(hosted.replication.version)))


def _take(block: ReplicatedBlock, shown: RegionsShown, descriptors: Sequence[int]) -> None:
    if len(descriptors) != 1 or not shown.gradients or shown.values:
        raise WireError(f"{len(descriptors)} descriptors for a loan", field="region", limit="1")
    most = block.tensor.nbytes_kept
    block.borrow(shown.gradients, map_foreign(descriptors[0], writable=False, most=most))


def _followed(
    hosted: Hosted,
    epoch: PlanEpoch,
    op: OpMeta,
    payload: memoryview | None,
    *,
    lent: bool = False,
) -> Status:
    check = hosted.replication.check_op(epoch, op.version)
    if check is Check.OK and op.version > hosted.replication.version:
        hosted.follow(op, payload, lent=lent)
    return STATUS_OF[check]
