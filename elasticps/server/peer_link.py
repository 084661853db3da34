"""What the streams of one server say to one peer: all of one turn of the loop goes together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from elasticps.core.ids import BlockId, JobKey, PlanEpoch
from elasticps.core.replica import Commit
from elasticps.errors import ElasticError, PeerUnavailable
from elasticps.server.hosted import Hosted
from elasticps.server.loans import Loan
from elasticps.wire.connection import Connection
from elasticps.wire.frame import MAX_META, Header, Kind, Status
from elasticps.wire.groups import MAX_GROUP_BYTES, MAX_PIECES, SMALL_BYTES, aligned
from elasticps.wire.messages import OpMeta, RegionsOffer, RegionsShown, decode, encode
from elasticps.wire.region_socket import show
from elasticps.wire.replicated import OpRow, OpsMeta, ProofMeta, RepliesMeta
from elasticps.wire.tallies import Traffic

log = logging.getLogger(__name__)


class Sender(Protocol):
    """Who waits for what becomes of a delivery; it hears one of the two."""

    def answered(self, delivery: Delivery, status: Status) -> None: ...

    def lost(self, delivery: Delivery, error: ElasticError) -> None: ...

    def proven(self, version: int, over: Connection) -> None:
        """The peer has applied what it had prepared as of ``version``."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Op:
    """An op as it is published: its payload lies in the ``loan``, where there is one."""

    meta: OpMeta
    payload: memoryview | None
    loan: Loan | None

    @property
    def nbytes(self) -> int:
        return self.payload.nbytes if self.payload is not None else 0


@dataclass(frozen=True, slots=True, eq=False)
class Delivery:
    """A block's next op on its way to the peer. ``began_ns``: of its span."""

    connection: Connection
    hosted: Hosted
    op: Op
    sender: Sender
    began_ns: int

    @property
    def is_lent(self) -> bool:
        """Does the peer find the payload where it lies?"""
        return self.op.loan is not None and self.connection in self.op.loan.shown_to

    @property
    def nbytes_sent(self) -> int:
        return 0 if self.is_lent else self.op.nbytes

    @property
    def header(self) -> Header:
        hosted = self.hosted
        epoch = hosted.replication.epoch
        return Header(Kind.OP, job=hosted.job, block=hosted.id, plan_epoch=epoch)


@dataclass(frozen=True, slots=True, eq=False)
class Proof:
    """A block's round is committed, and applied here as of ``version``."""

    connection: Connection
    job: JobKey
    block: BlockId
    epoch: PlanEpoch
    commit: Commit
    version: int
    sender: Sender


class PeerLink:
    """One peer's; ``streams`` use it. An op of a small block shares its frame with others, and so
    does one whose payload the peer finds in memory that it was lent."""

    def __init__(self, timeout_s: float, lent: Traffic) -> None:
        self.streams = 0
        self._timeout_s = timeout_s
        self._lent = lent
        self._deliveries: list[Delivery] = []
        self._proofs: list[Proof] = []
        self._loans: list[tuple[Connection, Hosted, Loan]] = []
        self._has_news = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        self._deliveries.append(delivery)
        self._has_news.set()

    def prove(self, proof: Proof) -> None:
        self._proofs.append(proof)
        self._has_news.set()

    def lend(self, connection: Connection, hosted: Hosted, loan: Loan) -> None:
        self._loans.append((connection, hosted, loan))
        self._has_news.set()

    async def run(self) -> None:
        """Send what there is, until cancelled; what waits for answers is cancelled with it."""
        async with asyncio.TaskGroup() as sending:
            while True:
                await self._has_news.wait()
                self._has_news.clear()
                deliveries, self._deliveries = self._deliveries, []
                proofs, self._proofs = self._proofs, []
                loans, self._loans = self._loans, []
                for batch in _batches(deliveries):
                    sending.create_task(self._deliver(batch))
                for same in _same_proofs(proofs):
                    sending.create_task(self._tell(same))
                for connection, hosted, loan in loans:
                    sending.create_task(self._show(connection, hosted, loan))

    async def _deliver(self, batch: Sequence[Delivery]) -> None:
        try:
            statuses = await self._statuses(batch)
        except ElasticError as error:
            for each in batch:
                each.sender.lost(each, error)
            return
        for each, status in zip(batch, statuses, strict=True):
            each.sender.answered(each, status)

    async def _statuses(self, batch: Sequence[Delivery]) -> Sequence[Status]:
        first = batch[0]
        if len(batch) == 1 and not first.is_lent:
            op = first.op
            reply = await first.connection.request(
                first.header, encode(op.meta), op.payload or None, timeout_s=self._timeout_s
            )
            return [reply.header.status]
        meta = encode(_ops(batch))
        if len(meta) > MAX_META and len(batch) > 1:
            middle = len(batch) // 2
            return [*await self._statuses(batch[:middle]), *await self._statuses(batch[middle:])]
        self._lent.sent += sum(each.op.nbytes for each in batch if each.is_lent)
        header = Header(Kind.OPS, job=first.hosted.job)
        payload = _payload(batch)
        reply = await first.connection.request(
            header, meta, payload or None, timeout_s=self._timeout_s
        )
        return _statuses_in(reply.meta, len(batch))

    async def _tell(self, proofs: Sequence[Proof]) -> None:
        first = proofs[0]
        blocks = tuple((each.block, each.epoch) for each in proofs)
        with contextlib.suppress(ElasticError):  # the next op says it again
            reply = await first.connection.request(
                Header(Kind.PROOF, job=first.job),
                encode(ProofMeta(first.commit, blocks)),
                timeout_s=self._timeout_s,
            )
            for each, status in zip(proofs, _statuses_in(reply.meta, len(proofs)), strict=True):
                if status is Status.OK:
                    each.sender.proven(each.version, first.connection)

    async def _show(self, connection: Connection, hosted: Hosted, loan: Loan) -> None:
        """Show the peer a loan; where it takes none, what would lie there is sent to it."""
        header = Header(Kind.LEND, job=hosted.job, block=hosted.id)
        mapped_by = None
        try:
            reply = await connection.request(header, timeout_s=self._timeout_s)
            loan.is_refused |= not reply.meta
            if loan.is_refused or loan.is_over:
                return
            offer = decode(reply.meta, RegionsOffer)
            shown = RegionsShown(offer.token, loan.number, 0)
            # Its own descriptor, for the loan may end meanwhile; the thread's, for this may be
            # cancelled meanwhile, and another file could have its number when it is passed.
            descriptor = os.dup(loan.region.descriptor)
            loop = asyncio.get_running_loop()
            showing = loop.run_in_executor(None, _show_once, offer.path, shown, descriptor)
            await asyncio.shield(showing)
            mapped_by = connection
        except ElasticError as error:
            log.info("block=%s is sent to %s: %s", hosted.id, connection.where, error)
        finally:
            loan.shown(mapped_by)


def _show_once(path: str, shown: RegionsShown, descriptor: int) -> None:
    try:
        show(path, shown, [descriptor])
    finally:
        os.close(descriptor)


def _payload(batch: Sequence[Delivery]) -> bytearray:
    """What is not lent, one after the other."""
    payload = bytearray(sum(aligned(each.nbytes_sent) for each in batch))
    start = 0
    for each in batch:
        if each.nbytes_sent and each.op.payload is not None:
            payload[start : start + each.nbytes_sent] = each.op.payload
        start += aligned(each.nbytes_sent)
    return payload


def _ops(batch: Sequence[Delivery]) -> OpsMeta:
    bodies: list[OpMeta] = []
    rows: list[OpRow] = []
    for each in batch:
        op, hosted = each.op, each.hosted
        body = msgspec.structs.replace(op.meta, version=0)
        if not bodies or bodies[-1] != body:
            bodies.append(body)
        rows.append(
            OpRow(
                block=hosted.id,
                plan_epoch=hosted.replication.epoch,
                version=op.meta.version,
                body=len(bodies) - 1,
                nbytes=op.nbytes,
                loan=op.loan.number if op.loan is not None and each.is_lent else 0,
            )
        )
    return OpsMeta(tuple(bodies), tuple(rows))


def _batches(deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
    """Those that go in one frame, in order; a large payload goes alone."""
    open_: dict[tuple[Connection, JobKey], list[Delivery]] = {}
    nbytes: dict[tuple[Connection, JobKey], int] = {}
    for each in deliveries:
        if each.nbytes_sent > SMALL_BYTES:
            yield [each]
            continue
        key = each.connection, each.hosted.job
        batch = open_.setdefault(key, [])
        size = nbytes.get(key, 0) + aligned(each.nbytes_sent)
        if batch and (size > MAX_GROUP_BYTES or len(batch) == MAX_PIECES):
            yield batch
            batch = open_[key] = []
            size = aligned(each.nbytes_sent)
        batch.append(each)
        nbytes[key] = size
    yield from open_.values()


def _same_proofs(proofs: Sequence[Proof]) -> Iterator[list[Proof]]:
    """Those of one commit, in frames."""
    same: list[Proof] = []
    for each in proofs:
        is_same = same and (each.connection, each.job, each.commit) == (
            same[0].connection,
            same[0].job,
            same[0].commit,
        )
        if same and (not is_same or len(same) == MAX_PIECES):
            yield same
            same = []
        same.append(each)
    if same:
        yield same


def _statuses_in(meta: bytes, count: int) -> list[Status]:
    try:
        statuses = [Status(each) for each in decode(meta, RepliesMeta).statuses]
    except ValueError as error:
        raise PeerUnavailable(f"an answer of no status: {error}") from error
    if len(statuses) != count:
        raise PeerUnavailable(f"{len(statuses)} answers to {count} ops")
    return statuses
