"""How regions come to a shard server: over a Unix socket of their own, for a data connection.

A descriptor is passed beside bytes that are read together with it, which a data connection's loop
does not do. So a worker asks over its data connection for a *token*, and shows it here together
with the descriptors: they are those of that connection, and end with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Self

from elasticps.errors import ElasticError, PeerUnavailable, UsageError, WireError
from elasticps.wire.address import Address
from elasticps.wire.listener import bind_unix, inode_of, remove_socket
from elasticps.wire.messages import RegionsShown, decode, encode
from elasticps.wire.peer_process import PeerProcess, peer_process
from elasticps.wire.tallies import Traffic

log = logging.getLogger(__name__)

TOKEN_BYTES = 16
MAX_REGIONS = 2
"""Of one connection: gradients and values. Others take their places."""
MAX_WAITING = 64
WAIT_S = 5.0
MAX_SHOWN = 256
BACKLOG = 64

Taken = Callable[[RegionsShown, Sequence[int]], None]
"""Maps the descriptors, which are closed afterwards. Raises WireError."""


class RegionSocket:
    """The accepting end; open inside ``async with``. ``traffic`` counts what goes through regions.

    Entering raises UsageError when the address cannot be had.
    """

    def __init__(self, data: Address, *, shared: bool = False, traffic: Traffic | None = None):
        self.traffic = traffic or Traffic()
        self.path = f"{data.path}.mem"
        self._mode = 0o660 if shared else 0o600
        self._expected: dict[bytes, tuple[PeerProcess, Taken]] = {}
        self._waiting: dict[socket.socket, asyncio.TimerHandle] = {}
        self._listening: socket.socket | None = None

    async def __aenter__(self) -> Self:
        try:
            address = Address.unix(self.path)
            sock = bind_unix(address, self._mode, socket.SOCK_SEQPACKET)
        except UsageError as error:
            log.warning("no shared memory: %s", error)
            return self
        self._inode = inode_of(self.path)
        sock.setblocking(False)
        sock.listen(BACKLOG)
        self._listening = sock
        asyncio.get_running_loop().add_reader(sock, self._accept, sock)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._expected.clear()
        for sock in tuple(self._waiting):
            self._drop(sock)
        if self._listening is not None:
            asyncio.get_running_loop().remove_reader(self._listening)
            self._listening.close()
            self._listening = None
            remove_socket(self.path, self._inode)

    @property
    def is_open(self) -> bool:
        return self._listening is not None

    def expect(self, caller: PeerProcess, taken: Taken) -> bytes:
        """A token by which ``caller`` can show its regions, once."""
        token = secrets.token_bytes(TOKEN_BYTES)
        self._expected[token] = caller, taken
        return token

    def forget(self, token: bytes) -> None:
        self._expected.pop(token, None)

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError, ConnectionAbortedError):
            sock, _ = listening.accept()
            sock.setblocking(False)
            if len(self._waiting) >= MAX_WAITING:
                sock.close()
                return
            loop = asyncio.get_running_loop()
            self._waiting[sock] = loop.call_later(WAIT_S, self._drop, sock)
            loop.add_reader(sock, self._read, sock)

    def _drop(self, sock: socket.socket) -> None:
        asyncio.get_running_loop().remove_reader(sock)
        self._waiting.pop(sock).cancel()
        sock.close()

    def _read(self, sock: socket.socket) -> None:
        try:
            content, descriptors, _, _ = socket.recv_fds(sock, MAX_SHOWN, MAX_REGIONS)
        except BlockingIOError:
            return
        except OSError as error:
            log.info("regions were not shown: %s", error)
            self._drop(sock)
            return
        reason = ""
        try:
            self._take(peer_process(sock), content, descriptors)
        except ElasticError as error:
            log.warning("regions refused: %s", error)
            reason = str(error)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
            with contextlib.suppress(OSError):
                sock.send(reason.encode()[:MAX_SHOWN] or b"\0")
            self._drop(sock)

    def _take(self, caller: PeerProcess, content: bytes, descriptors: Sequence[int]) -> None:
        shown = decode(content, RegionsShown)
        expected, taken = self._expected.get(shown.token, (None, None))
        if taken is None or expected != caller:
            raise WireError("regions of no connection here", field="token")
        self.forget(shown.token)
        taken(shown, descriptors)


def show(path: str, shown: RegionsShown, descriptors: Sequence[int]) -> None:
    """Pass regions to the server whose region socket is at ``path``; blocks until it has them.

    Raises PeerUnavailable when it does not take them.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(WAIT_S)
        try:
            sock.connect(path)
            socket.send_fds(sock, [encode(shown)], list(descriptors))
            answer = sock.recv(MAX_SHOWN)
        except OSError as error:
            what = f"it takes no regions: {error.strerror or error}"
            raise PeerUnavailable(what, where=path) from error
    if answer != b"\0":
        raise PeerUnavailable(answer.decode(errors="replace") or "it takes no regions", where=path)
