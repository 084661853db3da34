"""Peers for the tests of connections: well-behaved dispatchers, and raw sockets that are not."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from elasticps.errors import ElasticError
from elasticps.testing.waiting import PATIENCE_S as PATIENCE_S
from elasticps.testing.waiting import eventually as eventually
from elasticps.testing.waiting import open_fds
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, Dispatcher, connect
from elasticps.wire.frame import FLAG_REPLY, Header, pack, unpack
from elasticps.wire.listener import Listener, listen
from tests.support.loops import on_both_loops


def on_both_loops_without_leaks(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Decorate an async test: run on each kind of loop, it must leave no descriptor nor task."""

    @functools.wraps(test)
    async def checked(**fixtures: object) -> None:
        async with Inbox().listen(Address.tcp("127.0.0.1", 0)):
            pass  # a uvloop's first listener opens a descriptor that stays
        fds, tasks = open_fds(), len(asyncio.all_tasks())
        await test(**fixtures)
        await eventually(lambda: open_fds() <= fds and len(asyncio.all_tasks()) == tasks)

    return on_both_loops(checked)


def reply_to(request: bytes, payload: bytes) -> bytes:
    header = unpack(request)
    return (
        pack(
            Header(
                kind=header.kind,
                flags=FLAG_REPLY,
                request=header.request,
                payload_length=len(payload),
            )
        )
        + payload
    )


class Inbox:
    """A dispatcher that keeps what it receives and answers nothing."""

    def __init__(self) -> None:
        self.frames: list[tuple[Header, bytes, bytes | None]] = []
        self.open: list[Connection] = []
        self.closed_count = 0
        self.errors: list[ElasticError] = []

    def connected(self, conn: Connection) -> Inbox:
        self.open.append(conn)
        return self

    def told(self, conn: Connection, error: ElasticError) -> None:
        self.errors.append(error)

    def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
        return memoryview(bytearray(header.payload_length))

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        self.frames.append((header, meta, None if payload is None else payload.tobytes()))

    def closed(self, conn: Connection) -> None:
        self.open.remove(conn)
        self.closed_count += 1

    def listen(self, address: Address) -> Listener:
        return listen(address, self.connected, on_error=self.told)


class Echo(Inbox):
    """A dispatcher that also answers every request with its own meta and payload."""

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        super().received(conn, header, meta, payload)
        conn.send(header.reply(), meta, payload)


@contextlib.asynccontextmanager
async def linked(dispatcher: Inbox, address: Address) -> AsyncIterator[tuple[Listener, Connection]]:
    """A listener and a client connection to it."""
    async with (
        dispatcher.listen(address) as server,
        await connect(server.address, timeout_s=PATIENCE_S) as conn,
    ):
        yield server, conn


class RawPeer:
    """A listening TCP socket whose one accepted connection speaks whatever bytes it is told to."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.address = Address.tcp(*listening.getsockname()[:2])
        self.sock: socket.socket | None = None

    async def accept(self) -> None:
        self.sock, _ = await asyncio.get_running_loop().sock_accept(self._listening)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    async def send(self, data: bytes | memoryview) -> None:
        assert self.sock is not None
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def receive(self, size: int) -> bytes:
        assert self.sock is not None
        data = b""
        while len(data) < size:
            chunk = await asyncio.get_running_loop().sock_recv(self.sock, size - len(data))
            assert chunk, "closed early"
            data += chunk
        return data

    def reset(self) -> None:
        """Close so that the other end sees a reset, as from a machine that lost its state."""
        assert self.sock is not None
        linger_none = b"\x01\0\0\0\0\0\0\0"
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger_none)
        self.sock.close()


@contextlib.asynccontextmanager
async def raw_link(
    dispatcher: Dispatcher | None = None,
) -> AsyncIterator[tuple[RawPeer, Connection]]:
    """A client connection and the raw peer that it is connected to."""
    async with (
        raw_peer() as peer,
        await connect(peer.address, timeout_s=PATIENCE_S, dispatcher=dispatcher) as conn,
    ):
        await peer.accept()
        yield peer, conn


@contextlib.asynccontextmanager
async def raw_peer() -> AsyncIterator[RawPeer]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.setblocking(False)
        peer = RawPeer(listening)
        try:
            yield peer
        finally:
            if peer.sock is not None:
                peer.sock.close()


@contextlib.asynccontextmanager
async def raw_stream(address: Address) -> AsyncIterator[asyncio.StreamWriter]:
    """A raw connection to a listener, to write anything to."""
    _, writer = await asyncio.open_connection(address.host, address.port)
    try:
        yield writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
