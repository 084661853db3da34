"""The stream of server-sent events: the timeline as it happens, and the status as it changes.

The format is that of the HTML standard, section 9.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from enum import StrEnum
from typing import Annotated

import msgspec
from aiohttp import web

from elasticps.core.ids import JobName
from elasticps.daemon.http.background import running
from elasticps.daemon.http.body import query_of
from elasticps.daemon.http.contract import EVENTS, Query, operation, routes_of
from elasticps.daemon.http.guard import is_still_allowed
from elasticps.daemon.http.refusals import TooManyReaders
from elasticps.daemon.timeline import EVENT_ID, Event, Timeline
from elasticps.security.tokens import Role

log = logging.getLogger(__name__)

MAX_READERS = 64
PENDING_EVENTS = 256
"""What one reader may lag behind by before it is dropped."""
WRITE_TIMEOUT_S = 10.0
PLACE_S = 60.0
"""For how long a reader surely keeps its place while others wait for one. While little is said,
who reads nothing cannot be told from who reads all: the kernels' buffers take it."""
KEEP_ALIVE_S = 15.0
CHECK_S = 1.0
"""How often it is looked if a reader is still there, and its token good."""
STATUS_PERIOD_S = 0.5
REST = 4.0
"""After asking for the status for so long, the producer rests for this many times as long."""
RETRY_MS = 2000
SEND_BUFFER_BYTES = 64 << 10
"""The kernel's own would take megabytes before a reader that does not read is noticed."""

GetStatus = Callable[[], Awaitable[bytes]]


class Why(StrEnum):
    """Why a stream ended that its reader had not left."""

    BEHIND = "it lags by too many events"
    NOT_READ = "it takes nothing"
    DISPLACED = "others wait for its place"
    STOPPED = "the daemon stops"
    NOT_ALLOWED = "its token is not good any more"


class Reader:
    """What one reader is still to be sent: events in a bounded queue, the newest status alone."""

    def __init__(self, job: JobName | None, *, pending: int = PENDING_EVENTS) -> None:
        self.ended: Why | None = None
        self.joined_s = time.monotonic()
        self._job = job
        self._pending = pending
        self._events: deque[bytes] = deque()
        self._status: bytes | None = None
        self._news = asyncio.Event()

    def happened(self, event: Event, frame: bytes) -> None:
        if self._job is not None and event.job != self._job:
            return
        if len(self._events) >= self._pending:
            self.end(Why.BEHIND)
            return
        self._events.append(frame)
        self._news.set()

    def status(self, frame: bytes) -> None:
        self._status = frame
        self._news.set()

    def end(self, why: Why) -> None:
        self.ended = self.ended or why
        self._news.set()

    async def frame(self, patience_s: float) -> bytes | None:
        """The next one to write; None when there is none for so long, or the reader has ended."""
        if not (self._events or self._status or self.ended):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(patience_s):
                    await self._news.wait()
        if self.ended:
            return None
        if self._events:
            return self._events.popleft()
        frame, self._status = self._status, None
        return frame


class Broadcast:
    """One producer for all readers. The status is asked for while there are readers, and encoded
    once; ``run`` is the producer's life.
    """

    def __init__(
        self, timeline: Timeline, status: GetStatus, *, max_readers: int = MAX_READERS
    ) -> None:
        self._timeline = timeline
        self._ask_status = status
        self._max_readers = max_readers
        self._readers: set[Reader] = set()
        self._status = b""
        self._wanted = asyncio.Event()
        self._closed = False

    @property
    def readers(self) -> int:
        return len(self._readers)

    def join(self, reader: Reader) -> None:
        """From now on it gets all; where no place is free, the oldest reader may have to go.

        Raises TooManyReaders.
        """
        if self._closed or (len(self._readers) >= self._max_readers and not self._displace()):
            raise TooManyReaders(
                "this daemon serves no more streams",
                limit=str(self._max_readers),
                hint="ask another daemon, or GET /api/v1/events from time to time",
            )
        self._readers.add(reader)
        if self._status:
            reader.status(self._status)
        self._wanted.set()

    def _displace(self) -> bool:
        """End the reader that came first, unless even that one came lately."""
        oldest = min(self._readers, key=lambda reader: reader.joined_s)
        if time.monotonic() - oldest.joined_s < PLACE_S:
            return False
        oldest.end(Why.DISPLACED)
        self._readers.discard(oldest)
        return True

    def leave(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def close(self) -> None:
        """End all streams; no other begins. Idempotent."""
        self._closed = True
        for reader in self._readers:
            reader.end(Why.STOPPED)

    async def run(self) -> None:
        """Produce until cancelled."""
        unsubscribe = self._timeline.subscribe(self._happened)
        try:
            while True:
                await self._wanted.wait()
                took_s = await self._look()
                await asyncio.sleep(max(STATUS_PERIOD_S, REST * took_s))
                if not self._readers:
                    self._wanted.clear()
                    self._status = b""  # the next reader gets no old one
        finally:
            unsubscribe()
            self.close()

    async def _look(self) -> float:
        """Ask for the status, and tell it if it has changed; how long that took, in seconds."""
        began = time.monotonic()
        frame = b"event: status\ndata: " + await self._ask_status() + b"\n\n"
        if frame != self._status:
            self._status = frame
            for reader in self._readers:
                reader.status(frame)
        return time.monotonic() - began

    def _happened(self, event: Event) -> None:
        frame = frame_of(event)
        for reader in self._readers:
            reader.happened(event, frame)


def frame_of(event: Event) -> bytes:
    head = f"id: {event.id}\nevent: event\ndata: ".encode()
    return head + msgspec.json.encode(event) + b"\n\n"


class StreamQuery(Query, frozen=True):
    job: Annotated[str | None, msgspec.Meta(description="Events of this job alone.")] = None
    after: Annotated[
        str | None, msgspec.Meta(description="Events after this one; as Last-Event-ID.")
    ] = None


class StreamRoutes:
    def __init__(self, timeline: Timeline, broadcast: Broadcast) -> None:
        self._timeline = timeline
        self._broadcast = broadcast

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    async def life(self, _: web.Application) -> AsyncIterator[None]:
        """The producer lives as long as the application: a cleanup context of aiohttp."""
        async with running(stream=self._broadcast.run()):
            yield

    async def stop(self, _: web.Application) -> None:
        """At the application's shutdown: no stream makes it wait."""
        self._broadcast.close()

    @operation(
        "GET",
        "/api/v1/stream",
        "Server-sent events: the status as it changes, and the timeline as it happens",
        role=Role.READ,
        query=StreamQuery,
        content_type=EVENTS,
    )
    async def stream(self, request: web.Request) -> web.StreamResponse:
        asked = query_of(request, StreamQuery)
        job = JobName(asked.job) if asked.job is not None else None
        seen = request.headers.get("Last-Event-ID") or asked.after
        reader = Reader(job)
        self._broadcast.join(reader)
        try:
            # Nothing can happen between this and the joining: there is no gap and no repeat.
            opening = self._opening(seen, job)
            response = web.StreamResponse(
                headers={
                    "Content-Type": EVENTS,
                    "Cache-Control": "no-store",
                    "X-Accel-Buffering": "no",
                }
            )
            await response.prepare(request)
            await _write(request, response, opening, reader)
        finally:
            self._broadcast.leave(reader)
        return response

    def _opening(self, seen: str | None, job: JobName | None) -> bytes:
        """What comes first: how to resume, and what has happened since ``seen``."""
        retry = f"retry: {RETRY_MS}\n".encode()
        if seen is None:
            return retry + f"id: {self._timeline.newest}\n\n".encode()
        # An id that no daemon gave is as good as one of another life.
        known = EVENT_ID.fullmatch(seen) is not None
        page = self._timeline.page(seen if known else "00000000-0", job=job)
        told = _MISSED if page.missed else b""
        events = b"".join(frame_of(event) for event in page.events)
        return retry + b"\n" + told + events + f"id: {page.next}\n\n".encode()


_MISSED = (
    b"event: missed\n"
    b'data: {"what": "earlier events may be missing: this daemon does not know the last one seen,'
    b' or does not keep it any more"}\n\n'
)


async def _write(
    request: web.Request, response: web.StreamResponse, opening: bytes, reader: Reader
) -> None:
    """Write until the reader is gone, slow, or not allowed any more, or the daemon stops."""
    transport = request.transport
    if transport is None:
        return
    sock = transport.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    takes_it = False
    try:
        await _written(response.write(opening))
        await _follow(request, response, reader, transport)
        if reader.ended is not Why.BEHIND:
            await _written(response.write_eof())
            takes_it = True
    except TimeoutError:
        reader.end(Why.NOT_READ)
    except ConnectionError:
        return
    if reader.ended is not None:
        log.info("peer=%s its stream has ended: %s", request.remote, reader.ended.value)
    if not takes_it:
        transport.abort()


async def _follow(
    request: web.Request,
    response: web.StreamResponse,
    reader: Reader,
    transport: asyncio.BaseTransport,
) -> None:
    """Write what there is to tell until the reader has ended, or its connection."""
    heard = checked = time.monotonic()
    while not (reader.ended or transport.is_closing()):
        frame = await reader.frame(CHECK_S)
        now = time.monotonic()
        if now - checked > CHECK_S:
            checked = now
            if not is_still_allowed(request):
                reader.end(Why.NOT_ALLOWED)
        if frame is None and now - heard > KEEP_ALIVE_S:
            frame = b": keep-alive\n\n"
        if frame is not None and not reader.ended:
            await _written(response.write(frame))
            heard = time.monotonic()


async def _written(writing: Awaitable[None]) -> None:
    """Raises TimeoutError when the reader does not take it."""
    async with asyncio.timeout(WRITE_TIMEOUT_S):
        await writing
