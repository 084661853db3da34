"""One connection, the same at both ends: requests, replies and unasked frames over TCP or Unix.

Payload memory is not copied (a list of it is sent as one payload). What goes out is read from the
caller's memory, which must not change until the reply is here, ``writable()`` has returned, or the
connection is lost; a request that failed or was cancelled may leave its payload on the way out, so
there too await ``writable()``.
What comes in is received straight into the memory that the receiver names.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self, cast

import msgspec

from elasticps.core.ids import NodeId
from elasticps.errors import ElasticError, PeerUnavailable, WireError
from elasticps.security.tls import Secured, node_of
from elasticps.wire.address import Address
from elasticps.wire.frame import FLAG_PAYLOAD_CHECKSUM, MAX_PAYLOAD, Header, checksum, pack
from elasticps.wire.inflight import InFlight, Parts, Pending, Reply
from elasticps.wire.parser import FrameParser, Target
from elasticps.wire.peer_process import PeerProcess, peer_process
from elasticps.wire.tallies import Traffic

if TYPE_CHECKING:
    from typing_extensions import Buffer

    Payload = Buffer | list[Buffer]

UNIX_BUFFER = 4 << 20
"""Bytes asked for each kernel buffer of a Unix socket: up to twice as fast as with the default. TCP
is left alone: asking turns off the kernel's own tuning, which no fixed size that was tried beat."""
MAX_REPLY = 1 << 20
"""Bytes of a reply's payload that are received into fresh memory, unless the request says more."""
TLS_PIECE = 256 << 10
"""Bytes encrypted at a time: OpenSSL copies more of them more often, as its buffer grows."""
COALESCED = 16 << 10
"""Frames of up to so many bytes that are sent in one go are copied together into one write."""
MAX_UNTAKEN = 256 << 20
"""Bytes of answers that may wait for who asked; then its next requests wait in the kernel."""
CLOSE_TIMEOUT_S = 5.0
KEEPALIVE_IDLE_S, KEEPALIVE_INTERVAL_S, KEEPALIVE_PROBES = 2, 1, 4
UNREACHABLE_S = 15
"""How long a peer may take nothing before its connection counts as lost; for TCP alone."""


class Dispatcher(Protocol):
    """Where a connection's requests and unasked frames go.

    What ``destination`` and ``received`` raise closes that connection: an ElasticError quietly
    (see ``Connection.error``), anything else as a bug, through the loop's exception handler.
    """

    def destination(self, conn: Connection, header: Header, meta: bytes) -> Target | None:
        """Memory for the payload to come, of ``header.payload_length`` bytes; None to drop it."""
        ...

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        """One whole frame. Answer it from here or later, but never from ``destination``.

        ``payload`` is None for one that was dropped, and for one in several pieces.
        """
        ...

    def closed(self, conn: Connection) -> None:
        """The connection is lost: no payload memory is written to any more."""
        ...


OnConnect = Callable[["Connection"], Dispatcher | None]


class Connection(asyncio.BufferedProtocol):
    """A connection that belongs to one event loop. Made by ``connect`` and ``listen``.

    ``where`` names the peer. ``error`` says why the connection ended, None after an orderly end.
    ``ended_by_peer``: the other end has closed, so that its process has no part of it any more.
    """

    def __init__(
        self,
        where: Address,
        on_connect: OnConnect,
        on_lost: Callable[[Connection], None] | None = None,
        *,
        checksum_payloads: bool,
        max_payload: int,
        traffic: Traffic | None = None,
    ) -> None:
        self.where = where
        self.error: ElasticError | None = None
        self.ended_by_peer = False
        self._on_connect = on_connect
        self._on_lost = on_lost
        self._checksum_payloads = checksum_payloads
        self._traffic = traffic or Traffic()
        self._dispatcher: Dispatcher | None = None
        self._parser = FrameParser(self, max_payload=max_payload)
        self._in_flight = InFlight()
        self._waiting: dict[Pending, tuple[Header, bytes, Payload | None]] = {}
        self._queued: list[bytes] = []
        self._can_write = asyncio.Event()
        self._can_write.set()
        self._lost = asyncio.Event()
        self._reads = 0
        self._paused = False
        self._held_back = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    # Sending

    async def request(
        self,
        header: Header,
        meta: bytes = b"",
        payload: Payload | None = None,
        *,
        into: Buffer | None = None,
        parts: Parts | None = None,
        max_reply: int = MAX_REPLY,
        timeout_s: float,
    ) -> Reply:
        """Send a request and wait for its reply; any number may be in flight.

        A reply's payload is received into ``into`` when it has exactly that many bytes, otherwise
        into fresh memory of at most ``max_reply`` bytes. Once this has returned, raised or been
        cancelled, nothing is written to ``into`` any more: a late reply is dropped. Unless it
        returned, what ``into`` holds has no meaning. The same is true of the ``parts`` that may
        come before the reply.

        Raises PeerUnavailable when the connection is lost or no reply came within ``timeout_s``
        (the request may have taken effect), WireError when the reply breaks a limit.
        """
        view = None if into is None else _writable(into)
        pending = Pending(kind=header.kind, into=view, max_reply=max_reply)
        if parts is not None:
            pending.parts = parts
        try:
            async with asyncio.timeout(timeout_s):
                self._check_open()
                number = self._in_flight.add(pending)
                if self._can_write.is_set() and not self._waiting:
                    self._write(header, number, meta, payload)
                else:
                    self._waiting[pending] = header, meta, payload
                return await pending.answer
        except TimeoutError:
            raise PeerUnavailable(
                "no answer in time", where=str(self.where), limit=f"{timeout_s} s"
            ) from None
        finally:
            self._waiting.pop(pending, None)
            self._in_flight.remove(pending)
            if pending.receiving:
                self._parser.discard_payload()

    def send(self, header: Header, meta: bytes = b"", payload: Payload | None = None) -> None:
        """Send a reply (``header.reply()`` of its request) or an unasked frame, without waiting.

        Whoever sends much awaits ``writable`` in between. Raises PeerUnavailable when closed,
        WireError when a limit is broken (nothing is sent then).
        """
        self._check_open()
        self._write(header, header.request, meta, payload)

    async def writable(self) -> None:
        """Wait until the kernel has taken all that was sent before: its memory is free to change.

        This is the back-pressure of a peer that reads slowly. Raises PeerUnavailable when closed.
        """
        self._flush()
        await self._can_write.wait()
        self._check_open()

    def _send_waiting(self) -> None:
        """Send the requests that the kernel had no room for, in their order, as far as it has."""
        while self._waiting and self._can_write.is_set() and not self.closed:
            pending = next(iter(self._waiting))
            header, meta, payload = self._waiting.pop(pending)
            try:
                self._write(header, pending.number, meta, payload)
            except WireError as error:
                pending.fail(error)

    def _write(self, header: Header, number: int, meta: bytes, payload: Payload | None) -> None:
        views = _views_of(payload)
        nbytes = sum(map(len, views))
        flags = header.flags & ~FLAG_PAYLOAD_CHECKSUM
        digest = 0
        if views and self._checksum_payloads:
            flags |= FLAG_PAYLOAD_CHECKSUM
            digest = checksum(*views)
        filled = msgspec.structs.replace(
            header,
            flags=flags,
            request=number,
            payload_length=nbytes,
            payload_checksum=digest,
        )
        head = pack(filled, meta)
        self._traffic.sent += len(head) + nbytes
        if len(head) + nbytes <= COALESCED:
            self._queue(b"".join((head, *views)))
            return
        self._flush()
        if not views:
            self._transport.write(head)
        elif self._is_tls:
            self._transport.write(head)
            for view in views:
                for start in range(0, len(view), TLS_PIECE):
                    self._transport.write(view[start : start + TLS_PIECE])
        else:
            self._transport.writelines((head, *views))
        self._hold_back()

    def _queue(self, frame: bytes) -> None:
        """Send a small frame with those that are sent until the loop turns to other things."""
        if not self._queued:
            asyncio.get_running_loop().call_soon(self._flush)
        self._queued.append(frame)

    def _flush(self) -> None:
        if self._queued:
            frames, self._queued = self._queued, []
            self._transport.write(b"".join(frames))
            self._hold_back()

    def _hold_back(self) -> None:
        """Who asks on and on, and takes no answer, is not read from until it has taken them."""
        if self._on_lost is None or self._held_back or self._transport.is_closing():
            return  # the end that connected reads always: both would wait for each other
        if self._transport.get_write_buffer_size() > MAX_UNTAKEN:
            self._held_back = True
            self._transport.pause_reading()

    def peer(self) -> Address:
        """The other end as the kernel knows it; for a Unix socket, the listener's address."""
        name = self._transport.get_extra_info("peername")
        return Address.tcp(*name[:2]) if isinstance(name, tuple) else self.where

    def peer_node(self) -> NodeId | None:
        """The node whose certificate the other end has proven to have; None where it showed none,
        as workers do, or without TLS."""
        return node_of(self._transport.get_extra_info("peercert"))

    def peer_process(self) -> PeerProcess:
        """Of a Unix socket, the process that connected or listens, by the kernel's word."""
        return peer_process(self._transport.get_extra_info("socket"))

    def _check_open(self) -> None:
        if self._lost.is_set() or self._transport.is_closing():
            raise self._unavailable()

    def _unavailable(self) -> PeerUnavailable:
        what = "the connection is closed" if self.error is None else self.error.what
        return PeerUnavailable(what, where=str(self.where))

    # Life

    def pause_reading(self) -> None:
        """Receive nothing until ``resume_reading``; the peer's ``writable`` comes to wait."""
        self._paused = True
        self._transport.pause_reading()

    def resume_reading(self) -> None:
        self._paused = False
        if not self._held_back:
            self._transport.resume_reading()

    @property
    def closed(self) -> bool:
        """True when nothing can be sent any more."""
        return self._lost.is_set() or self._transport.is_closing()

    @property
    def unfinished(self) -> int | None:
        """How many reads there have been, where a frame has begun and its rest is to come; None
        between frames, and where the peer is not to blame."""
        idle = self._paused or self._held_back or self._parser.between_frames
        return None if idle else self._reads

    def give_up(self, stalled_s: float) -> None:
        """Close a connection whose peer has begun a frame and fallen silent."""
        self._fail(
            WireError(
                "a frame was begun and not ended",
                where=str(self.where),
                field="payload_length",
                limit=f"silence of {stalled_s:g} s",
            )
        )

    def abort(self) -> None:
        """Close at once; what was not sent yet is dropped. Idempotent, and cannot block."""
        if not self._lost.is_set():
            self._flush()
            self._transport.abort()

    async def aclose(self, *, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is queued, then close; abort if the peer has not taken it in ``timeout_s``.

        Idempotent. What is in flight fails with PeerUnavailable.
        """
        self._flush()
        self._transport.close()
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await self._lost.wait()
        finally:
            self.abort()
        await self._lost.wait()

    def _fail(self, error: ElasticError) -> None:
        if self.error is None:
            self.error = error
        self._flush()
        self._transport.abort()

    # What the event loop calls (asyncio.BufferedProtocol)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        # With no slack, "may write" also means "holds nobody's memory"; the kernel has the buffers.
        # TLS transports pause at the limit and not above it: with 0 they would never resume.
        self._is_tls = self._transport.get_extra_info("sslcontext") is not None
        self._transport.set_write_buffer_limits(high=1 if self._is_tls else 0, low=0)
        _configure(self._transport.get_extra_info("socket"))
        try:
            self._dispatcher = self._on_connect(self)
        except ElasticError as error:
            self._fail(error)
        except BaseException:
            self._transport.abort()
            raise

    def connection_lost(self, exc: Exception | None) -> None:
        if self.error is None and exc is not None:
            self.error = PeerUnavailable(f"the connection was lost: {exc}", where=str(self.where))
        self.ended_by_peer |= isinstance(exc, ConnectionResetError | BrokenPipeError)
        self._lost.set()
        self._waiting.clear()
        self._queued.clear()
        self._can_write.set()
        self._parser.discard_payload()
        self._in_flight.fail_all(self._unavailable())
        try:
            if self._dispatcher is not None:
                self._dispatcher.closed(self)
        finally:
            if self._on_lost is not None:
                self._on_lost(self)

    def eof_received(self) -> None:
        self.ended_by_peer = True
        if not self._parser.between_frames:
            what = "the peer closed in the middle of a frame"
            self._fail(PeerUnavailable(what, where=str(self.where)))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._parser.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        self._reads += 1
        self._traffic.received += nbytes
        try:
            self._parser.buffer_updated(nbytes)
        except ElasticError as error:
            self._fail(error)

    def pause_writing(self) -> None:
        self._can_write.clear()

    def resume_writing(self) -> None:
        self._can_write.set()
        if self._waiting:  # not from here: the transport is in the middle of something
            asyncio.get_running_loop().call_soon(self._send_waiting)
        if self._held_back:
            self._held_back = False
            if not self._paused:
                self._transport.resume_reading()

    # What the parser calls (elasticps.wire.parser.Sink)

    def destination(self, header: Header, meta: bytes) -> Target | None:
        if self._transport.is_closing():
            return None
        if header.is_reply:
            return self._in_flight.destination(header)
        return self._receiver().destination(self, header, meta)

    def frame(self, header: Header, meta: bytes, payload: memoryview | None) -> None:
        if self._transport.is_closing():  # what was read with the frame that ended it
            return
        if header.is_reply:
            self._in_flight.settle(header, meta, payload)
        else:
            self._receiver().received(self, header, meta, payload)

    def _receiver(self) -> Dispatcher:
        if self._dispatcher is None:
            raise WireError("a request where only replies are expected", field="flags")
        return self._dispatcher


async def connect(
    address: Address,
    *,
    timeout_s: float,
    dispatcher: Dispatcher | None = None,
    secured: Secured | None = None,
    checksum_payloads: bool = False,
    max_payload: int = MAX_PAYLOAD,
    traffic: Traffic | None = None,
) -> Connection:
    """A connection to the listener at ``address``; ``async with`` it, or ``aclose`` it.

    ``dispatcher`` takes what the peer sends unasked; without one, that is a WireError. With
    ``secured`` TCP is TLS, to whom that names; a Unix socket does not leave the machine. What goes
    over it is added to ``traffic``.
    Raises PeerUnavailable when nobody answers there within ``timeout_s``, or another than named.
    """
    loop = asyncio.get_running_loop()

    def protocol() -> Connection:
        return Connection(
            address,
            lambda _: dispatcher,
            checksum_payloads=checksum_payloads,
            max_payload=max_payload,
            traffic=traffic,
        )

    try:
        async with asyncio.timeout(timeout_s):
            if address.transport == "unix":
                _, conn = await loop.create_unix_connection(protocol, address.path)
            else:
                _, conn = await loop.create_connection(
                    protocol,
                    address.host,
                    address.port,
                    ssl=secured.context if secured else None,
                    server_hostname=secured.name if secured else None,
                )
    except TimeoutError:
        raise PeerUnavailable(
            "no connection in time", where=str(address), limit=f"{timeout_s} s"
        ) from None
    except (OSError, UnicodeError) as error:
        why = str(error) or type(error).__name__
        raise PeerUnavailable(f"cannot connect: {why}", where=str(address)) from error
    return conn


def _configure(sock: socket.socket) -> None:
    """A peer that is cut off is noticed in seconds, not when TCP gives up after a quarter hour."""
    if sock.family == socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, UNIX_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, UNIX_BUFFER)
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 1000 * UNREACHABLE_S)


def _views_of(payload: Payload | None) -> list[memoryview]:
    """A payload's flat bytes, without empty pieces."""
    if payload is None:
        return []
    views = map(_bytes_of, payload) if isinstance(payload, list) else [_bytes_of(payload)]
    return [view for view in views if view is not None]


def _bytes_of(buffer: Buffer) -> memoryview | None:
    view = memoryview(buffer)
    return view.cast("B") if view.nbytes else None


def _writable(buffer: Buffer) -> memoryview | None:
    if memoryview(buffer).readonly:
        raise ValueError("a reply cannot be received into read-only memory")
    return _bytes_of(buffer)
