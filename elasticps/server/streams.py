"""Replica streams: from a primary to one peer, a snapshot first and then every op, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from elasticps.core.ids import BlockId, JobKey, ServerId
from elasticps.core.replica import Commit
from elasticps.core.replication import Check
from elasticps.core.stream import Due, Sent, StreamOrder, outcome
from elasticps.errors import ElasticError
from elasticps.server.hosted import STATUS_OF, Hosted
from elasticps.server.loans import BlockLoans, Loan
from elasticps.server.peer_link import Delivery, Op, PeerLink, Proof
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.groups import SMALL_BYTES
from elasticps.wire.messages import OpMeta, encode
from elasticps.wire.pool import ConnectionPool
from elasticps.wire.transports import SHM

log = logging.getLogger(__name__)

DELIVER_TIMEOUT_S = 30.0
FIRST_RETRY_S = 0.005
LAST_RETRY_S = 0.2
CHECK_OF = {status: check for check, status in STATUS_OF.items()}


class _Broken(ElasticError):
    """This stream cannot go on from where it is; it starts over with a snapshot."""


class _Stream:
    """One block's way to one peer. Ops flow over ``_connection``, one at a time, once the peer has
    taken a snapshot that came over it, until the stream breaks."""

    def __init__(
        self, hosted: Hosted, peer: ServerId, peers: ConnectionPool[ServerId], link: PeerLink
    ) -> None:
        self._hosted = hosted
        self._peer = peer
        self._peers = peers
        self._link = link
        self._order: StreamOrder[Op] = StreamOrder()
        self._lent: list[tuple[int, Loan]] = []
        self._connection: Connection | None = None
        self._sending: Delivery | None = None
        self._retry_s = FIRST_RETRY_S
        self._has_broken = asyncio.Event()
        self._error: ElasticError | None = None

    @property
    def near(self) -> Connection | None:
        """What it flows over, where the peer is on this machine."""
        way = self._connection
        return way if way is not None and way.where.transport == "unix" else None

    def publish(self, op: OpMeta, payload: memoryview | None, loan: Loan | None) -> None:
        counted = self._hosted.replication.counts(self._peer)
        if loan is not None:
            loan.held_by.add(self)
            self._lent.append((op.version, loan))
        self._order.publish(Op(op, payload, loan), counted=counted)
        self._go()

    def prove(self, commit: Commit) -> None:
        """Let the peer apply what it has prepared: the next op would ask for it, and wait."""
        if self._connection is not None:
            hosted = self._hosted
            epoch, version = hosted.replication.epoch, hosted.replication.version
            proof = Proof(self._connection, hosted.job, hosted.id, epoch, commit, version, self)
            self._link.prove(proof)

    def lend(self, loan: Loan) -> None:
        """Show the peer memory that gradients will lie in."""
        if self._connection is not None:
            self._link.lend(self._connection, self._hosted, loan)

    def _released(self, version: int) -> None:
        """The peer reads nothing any more that ops up to ``version`` have lent."""
        while self._lent and self._lent[0][0] <= version:
            _, loan = self._lent.pop(0)
            if all(loan is not other for _, other in self._lent):
                loan.held_by.discard(self)

    def _spoil(self) -> None:
        """Nobody knows what the peer reads yet, or will."""
        for _, loan in self._lent:
            loan.end()
        self._lent.clear()

    async def run(self) -> None:
        while True:
            try:
                connection = await self._peers.connection(self._peer)
                await self._send_snapshot(connection)
                await self._flow(connection)
            except ElasticError as error:
                log.info("stream block=%s peer=%s: %s", self._hosted.id, self._peer, error)
                self._order.start_over()
                self._hosted.perform(self._hosted.replication.restarted(self._peer))
            await self._rest()

    async def _send_snapshot(self, connection: Connection) -> None:
        self._order.begin()
        meta, payload = self._hosted.snapshot()
        nbytes = self._hosted.snapshot_bytes[self._peer] = len(payload) + len(meta.ledger)
        encoded = encode(meta)
        while True:
            header = Header(
                Kind.SNAPSHOT,
                job=self._hosted.job,
                block=self._hosted.id,
                plan_epoch=self._hosted.replication.epoch,
            )
            reply = await connection.request(
                header, encoded, payload or None, timeout_s=DELIVER_TIMEOUT_S
            )
            if self._is_taken(reply.header.status):
                break
            await self._rest()
        self._retry_s = FIRST_RETRY_S
        self._hosted.counts.snapshots += 1
        self._hosted.counts.snapshot_bytes += nbytes
        self._released(meta.version)
        self._hosted.acked(self._peer, meta.version)

    async def _flow(self, connection: Connection) -> None:
        """Send ops as they come. Raises what breaks the stream."""
        self._connection, self._error = connection, None
        self._has_broken.clear()
        try:
            self._go()
            await self._has_broken.wait()
        finally:
            self._connection = self._sending = None
        assert self._error is not None
        raise self._error

    def stop(self) -> None:
        """Hear of no answer any more: it is for a stream that is over."""
        self._connection = self._sending = None
        self._spoil()

    def _break(self, error: ElasticError) -> None:
        self._connection = self._sending = None
        self._spoil()
        self._error = error
        self._has_broken.set()

    def _go(self) -> None:
        if self._connection is None or self._sending is not None:
            return
        due = self._order.due()
        if due is Due.OP:
            op = self._order.take()
            began_ns = self._hosted.spans.begin()
            self._send(Delivery(self._connection, self._hosted, op, self, began_ns))
        elif due is not Due.NOTHING:
            self._break(_Broken("the peer fell behind"))

    def _send(self, delivery: Delivery) -> None:
        self._sending = delivery
        self._link.put(delivery)

    # -- what the link says of a delivery -------------------------------------------------------

    def answered(self, delivery: Delivery, status: Status) -> None:
        if delivery is not self._sending:
            return  # the stream has started over since
        try:
            if self._is_taken(status):
                self._taken(delivery)
            else:
                asyncio.get_running_loop().call_later(self._retry_s, self._send_again, delivery)
                self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        except _Broken as error:
            self._break(error)

    def lost(self, delivery: Delivery, error: ElasticError) -> None:
        if delivery is self._sending:
            self._break(error)

    def proven(self, version: int, over: Connection) -> None:
        if over is self._connection:
            self._released(version)

    def _send_again(self, delivery: Delivery) -> None:
        if delivery is self._sending:
            self._send(delivery)

    def _taken(self, delivery: Delivery) -> None:
        hosted, op, nbytes = self._hosted, delivery.op.meta, delivery.op.nbytes
        self._sending, self._retry_s = None, FIRST_RETRY_S
        hosted.spans.end(
            "replicate",
            delivery.began_ns,
            block=hosted.id,
            nbytes=nbytes,
            via=self._peer,
            round_=op.op.round if op.op else 0,
        )
        hosted.counts.ops += 1
        hosted.counts.op_bytes += len(op.command) + nbytes
        # What it was lent for a round the peer reads until it has applied that.
        self._released(op.version if op.at_once or not delivery.is_lent else op.version - 1)
        hosted.acked(self._peer, op.version)
        self._go()

    def _is_taken(self, status: Status) -> bool:
        """False where the peer has not seen this primary's plan yet. Raises _Broken."""
        sent = outcome(CHECK_OF.get(status, Check.UNKNOWN))
        if sent is Sent.REFUSED:
            raise _Broken(f"the peer answered {status.name}")
        return sent is Sent.TAKEN

    async def _rest(self) -> None:
        await asyncio.sleep(self._retry_s)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)


class ReplicaStreams:
    """All replica streams of one server, and its links to their peers; each is a task of
    ``tasks``."""

    def __init__(
        self,
        tasks: asyncio.TaskGroup,
        peers: ConnectionPool[ServerId],
        promises_changed: Callable[[JobKey], None],
    ) -> None:
        self._tasks = tasks
        self._peers = peers
        self._promises_changed = promises_changed
        self._streams: dict[tuple[JobKey, BlockId], dict[ServerId, _Stream]] = {}
        self._running: dict[_Stream, asyncio.Task[None]] = {}
        self._loans: dict[tuple[JobKey, BlockId], BlockLoans] = {}
        self._links: dict[ServerId, tuple[PeerLink, asyncio.Task[None]]] = {}

    def open(self, hosted: Hosted, peer: ServerId) -> None:
        stream = _Stream(hosted, peer, self._peers, self._link(peer))
        self._streams.setdefault((hosted.job, hosted.id), {})[peer] = stream
        self._running[stream] = self._tasks.create_task(
            stream.run(), name=f"stream {hosted.job}:{hosted.id} to {peer}"
        )

    def _link(self, peer: ServerId) -> PeerLink:
        if peer not in self._links:
            link = PeerLink(DELIVER_TIMEOUT_S, self._peers.traffic.by_transport[SHM])
            self._links[peer] = link, self._tasks.create_task(link.run(), name=f"link to {peer}")
        link, _ = self._links[peer]
        link.streams += 1
        return link

    def close(self, hosted: Hosted, peer: ServerId) -> None:
        streams = self._streams.get((hosted.job, hosted.id), {})
        stream = streams.pop(peer, None)
        if stream is not None:
            stream.stop()
            self._running.pop(stream).cancel()
            link, task = self._links[peer]
            link.streams -= 1
            if not link.streams:
                del self._links[peer]
                task.cancel()
        if not streams:
            self._streams.pop((hosted.job, hosted.id), None)
            loans = self._loans.pop((hosted.job, hosted.id), None)
            if loans is not None:
                loans.end()

    def room(self, hosted: Hosted, nbytes: int) -> Loan | None:
        if nbytes <= SMALL_BYTES:
            return None
        streams = [stream for stream in self._of(hosted) if stream.near is not None]
        if not streams:
            return None
        near = {stream.near for stream in streams if stream.near is not None}
        loans = self._loans.setdefault((hosted.job, hosted.id), BlockLoans(nbytes))
        found = loans.free(near)
        if found is None and (more := loans.more(near)) is not None:
            for stream in streams:
                stream.lend(more)
        return found

    def publish(
        self, hosted: Hosted, op: OpMeta, payload: memoryview | None, loan: Loan | None = None
    ) -> None:
        for stream in self._of(hosted):
            stream.publish(op, payload, loan)

    def prove(self, hosted: Hosted, commit: Commit) -> None:
        for stream in self._of(hosted):
            stream.prove(commit)

    def _of(self, hosted: Hosted) -> list[_Stream]:
        return list(self._streams.get((hosted.job, hosted.id), {}).values())

    def promises_changed(self, job: JobKey) -> None:
        self._promises_changed(job)
