"""The accepting end: one listening socket, TCP or Unix, and the connections that came by it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Self

from elasticps.errors import ElasticError, UsageError, WireError
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, Dispatcher, OnConnect
from elasticps.wire.frame import MAX_PAYLOAD
from elasticps.wire.tallies import Traffic

BACKLOG = 512
HANDSHAKE_TIMEOUT_S = 5.0
STALLED_S = 60.0
"""A frame that is begun, and of which nothing more comes for so long, ends its connection (within
twice that): it holds the memory that its payload goes to. Who was only slow asks again."""

OnError = Callable[[Connection, ElasticError], None]


def listen(
    address: Address,
    on_connect: OnConnect,
    *,
    on_error: OnError | None = None,
    tls: ssl.SSLContext | None = None,
    checksum_payloads: bool = False,
    max_payload: int = MAX_PAYLOAD,
    shared: bool = False,
    stalled_s: float = STALLED_S,
    traffic: Traffic | None = None,
) -> Listener:
    """A listener at ``address``, open inside ``async with``; leaving closes its connections too.

    ``on_connect`` gives each new connection its dispatcher (an ElasticError it raises refuses the
    connection). ``on_error`` is told of each connection that ended in an error. ``tls`` makes TCP
    TLS and nothing else; a Unix socket does not leave the machine. ``shared``: to a Unix socket the
    group of its file may connect, not its owner alone. What goes over the connections is added to
    ``traffic``. Entering raises UsageError when the address is taken or cannot be had.
    """
    return Listener(
        address,
        on_connect,
        on_error,
        tls=tls,
        checksum_payloads=checksum_payloads,
        max_payload=max_payload,
        shared=shared,
        stalled_s=stalled_s,
        traffic=traffic,
    )


class Listener:
    """See ``listen``. ``address`` has the real port; ``wire_errors`` counts broken streams."""

    def __init__(
        self,
        address: Address,
        on_connect: OnConnect,
        on_error: OnError | None,
        *,
        tls: ssl.SSLContext | None,
        checksum_payloads: bool,
        max_payload: int,
        shared: bool,
        stalled_s: float,
        traffic: Traffic | None = None,
    ) -> None:
        self.address = address
        self.wire_errors = 0
        self.connections: set[Connection] = set()
        self._on_connect = on_connect
        self._on_error = on_error
        self._tls = tls
        self._checksum_payloads = checksum_payloads
        self._max_payload = max_payload
        self._shared = shared
        self._stalled_s = stalled_s
        self._unfinished: dict[Connection, int] = {}
        self._looked_s = 0.0
        self._next_look: asyncio.TimerHandle | None = None
        self._traffic = traffic
        self._closing = False

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        if self.address.transport == "unix":
            sock = bind_unix(self.address, 0o660 if self._shared else 0o600)
            self._inode = inode_of(self.address.path)
            self._server = await loop.create_unix_server(
                self._protocol, sock=sock, backlog=BACKLOG, start_serving=False
            )
        else:
            sock = await _bind_tcp(self.address)
            self.address = Address.tcp(self.address.host, sock.getsockname()[1])
            self._server = await loop.create_server(
                self._protocol,
                sock=sock,
                backlog=BACKLOG,
                ssl=self._tls,
                ssl_handshake_timeout=HANDSHAKE_TIMEOUT_S if self._tls else None,
                start_serving=False,
            )
        try:
            await self._server.start_serving()
        except BaseException:
            await self.__aexit__()
            raise
        self._look_later()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._closing = True
        if self._next_look is not None:
            self._next_look.cancel()
        try:
            await self._accept_no_more()
            async with asyncio.TaskGroup() as group:
                for conn in self.connections:
                    group.create_task(conn.aclose())
            await self._server.wait_closed()
        finally:
            if self.address.transport == "unix":
                remove_socket(self.address.path, self._inode)

    async def _accept_no_more(self) -> None:
        """What has been accepted reaches its protocol first: of a server that closes in between
        asyncio forgets it, open (python/cpython#109564)."""
        loop = asyncio.get_running_loop()
        try:
            for sock in self._server.sockets:
                loop.remove_reader(sock.fileno())
            await asyncio.sleep(0)
        finally:
            self._server.close()

    def _protocol(self) -> Connection:
        return Connection(
            self.address,
            self._joined,
            self._left,
            checksum_payloads=self._checksum_payloads,
            max_payload=self._max_payload,
            traffic=self._traffic,
        )

    def _joined(self, conn: Connection) -> Dispatcher | None:
        conn.where = conn.peer()
        self.connections.add(conn)
        if self._closing:
            conn.abort()
            return None
        return self._on_connect(conn)

    def _look_for_stalled(self) -> None:
        """Give up connections that have had nothing to read, within a frame, since the last look.

        A look that comes late says nothing of the peers: it was this process that stood still.
        """
        loop = asyncio.get_running_loop()
        in_time = loop.time() - self._looked_s < 2 * self._stalled_s
        before, self._unfinished = self._unfinished, {}
        for conn in tuple(self.connections):
            reads = conn.unfinished
            if reads is None:
                continue
            if in_time and before.get(conn) == reads:
                conn.give_up(self._stalled_s)
            else:
                self._unfinished[conn] = reads
        self._look_later()

    def _look_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._looked_s = loop.time()
        self._next_look = loop.call_later(self._stalled_s, self._look_for_stalled)

    def _left(self, conn: Connection) -> None:
        self.connections.discard(conn)
        self._unfinished.pop(conn, None)
        if isinstance(conn.error, WireError):
            self.wire_errors += 1
        if conn.error is not None and self._on_error is not None:
            self._on_error(conn, conn.error)


async def _bind_tcp(address: Address) -> socket.socket:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, kind, proto, _, where = found[0]
        sock = socket.socket(family, kind, proto)
    except (OSError, UnicodeError) as error:
        raise _refused(address, error) from error
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
    except OSError as error:
        sock.close()
        raise _refused(address, error) from error
    return sock


def bind_unix(
    address: Address, mode: int, kind: socket.SocketKind = socket.SOCK_STREAM
) -> socket.socket:
    """A socket bound there, in the place of one that nobody listens at. Raises UsageError."""
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        _replace_stale(address, kind)
        sock.bind(address.path)
        # Nobody can connect before listen(), so there is no moment with a wider mode.
        Path(address.path).chmod(mode)
    except OSError as error:
        sock.close()
        raise _refused(address, error) from error
    except UsageError:
        sock.close()
        raise
    return sock


def _replace_stale(address: Address, kind: socket.SocketKind) -> None:
    """Remove the socket file of a listener that is gone; UsageError for anything else there."""
    try:
        mode = os.lstat(address.path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise UsageError("a file that is no socket is there", where=str(address), field="path")
    with socket.socket(socket.AF_UNIX, kind) as probe:
        probe.setblocking(False)
        if probe.connect_ex(address.path) != errno.ECONNREFUSED:
            raise UsageError(
                "another process listens there",
                where=str(address),
                field="path",
                hint="does a daemon run here already? each needs a --runtime-dir of its own",
            )
    Path(address.path).unlink()


def inode_of(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino


def remove_socket(path: str, inode: tuple[int, int]) -> None:
    """Remove a socket's file, unless it is another's by now."""
    with contextlib.suppress(FileNotFoundError):
        if inode_of(path) == inode:
            Path(path).unlink()


def _refused(address: Address, error: Exception) -> UsageError:
    return UsageError(f"cannot listen: {error}", where=str(address), field="address")
