"""Replica streams: from a primary to one peer, a snapshot first and then every op, in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from elasticps.core.ids import BlockId, JobKey, ServerId
from elasticps.core.replication import Check
from elasticps.core.stream import Due, Sent, StreamOrder, outcome
from elasticps.errors import ElasticError
from elasticps.server.hosted import STATUS_OF, Hosted
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind
from elasticps.wire.messages import OpMeta, encode
from elasticps.wire.pool import ConnectionPool

log = logging.getLogger(__name__)

DELIVER_TIMEOUT_S = 30.0
FIRST_RETRY_S = 0.005
LAST_RETRY_S = 0.2
CHECK_OF = {status: check for check, status in STATUS_OF.items()}


class _Broken(ElasticError):
    """This stream cannot go on from where it is; it starts over with a snapshot."""


class _Stream:
    """One block's way to one peer."""

    def __init__(self, hosted: Hosted, peer: ServerId, peers: ConnectionPool[ServerId]) -> None:
        self._hosted = hosted
        self._peer = peer
        self._peers = peers
        self._order: StreamOrder[tuple[OpMeta, memoryview | None]] = StreamOrder()
        self._has_news = asyncio.Event()

    def publish(self, op: OpMeta, payload: memoryview | None) -> None:
        counted = self._hosted.replication.counts(self._peer)
        self._order.publish((op, payload), counted=counted)
        self._has_news.set()

    async def run(self) -> None:
        retry_s = FIRST_RETRY_S
        while True:
            try:
                connection = await self._peers.connection(self._peer)
                await self._send_snapshot(connection)
                retry_s = FIRST_RETRY_S
                while True:
                    await self._send_next(connection)
            except ElasticError as error:
                log.info("stream block=%s peer=%s: %s", self._hosted.id, self._peer, error)
                self._order.start_over()
                self._hosted.perform(self._hosted.replication.restarted(self._peer))
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _send_snapshot(self, connection: Connection) -> None:
        self._order.begin()
        meta, payload = self._hosted.snapshot()
        nbytes = self._hosted.snapshot_bytes[self._peer] = len(payload) + len(meta.ledger)
        await self._deliver(connection, Kind.SNAPSHOT, encode(meta), memoryview(payload))
        self._hosted.counts.snapshots += 1
        self._hosted.counts.snapshot_bytes += nbytes
        self._hosted.acked(self._peer, meta.version)

    async def _send_next(self, connection: Connection) -> None:
        while self._order.due() is Due.NOTHING:
            self._has_news.clear()
            await self._has_news.wait()
        if self._order.due() is not Due.OP:
            raise _Broken("the peer fell behind")
        op, payload = self._order.take()
        began_ns, number = self._hosted.spans.begin(), op.op.round if op.op else 0
        await self._deliver(connection, Kind.OP, encode(op), payload)
        self._hosted.spans.end(
            "replicate",
            began_ns,
            block=self._hosted.id,
            nbytes=payload.nbytes if payload else 0,
            via=self._peer,
            round_=number,
        )
        self._hosted.counts.ops += 1
        self._hosted.counts.op_bytes += len(op.command) + (payload.nbytes if payload else 0)
        self._hosted.acked(self._peer, op.version)

    async def _deliver(
        self, connection: Connection, kind: Kind, meta: bytes, payload: memoryview | None
    ) -> None:
        """Send until the peer has seen this primary's plan and has applied what was sent."""
        retry_s = FIRST_RETRY_S
        while True:
            header = Header(
                kind,
                job=self._hosted.job,
                block=self._hosted.id,
                plan_epoch=self._hosted.replication.epoch,
            )
            reply = await connection.request(
                header, meta, payload or None, timeout_s=DELIVER_TIMEOUT_S
            )
            sent = outcome(CHECK_OF.get(reply.header.status, Check.UNKNOWN))
            if sent is Sent.TAKEN:
                return
            if sent is Sent.REFUSED:
                raise _Broken(f"the peer answered {reply.header.status.name}")
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)


class ReplicaStreams:
    """All replica streams of one server; each is a task of ``tasks``."""

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

    def open(self, hosted: Hosted, peer: ServerId) -> None:
        stream = _Stream(hosted, peer, self._peers)
        self._streams.setdefault((hosted.job, hosted.id), {})[peer] = stream
        self._running[stream] = self._tasks.create_task(
            stream.run(), name=f"stream {hosted.job}:{hosted.id} to {peer}"
        )

    def close(self, hosted: Hosted, peer: ServerId) -> None:
        streams = self._streams.get((hosted.job, hosted.id), {})
        stream = streams.pop(peer, None)
        if stream is not None:
            self._running.pop(stream).cancel()
        if not streams:
            self._streams.pop((hosted.job, hosted.id), None)

    def publish(self, hosted: Hosted, op: OpMeta, payload: memoryview | None) -> None:
        for stream in self._streams.get((hosted.job, hosted.id), {}).values():
            stream.publish(op, payload)

    def promises_changed(self, job: JobKey) -> None:
        self._promises_changed(job)
