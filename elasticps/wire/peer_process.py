"""Who is at the other end of a Unix socket, by the kernel's word and not by its own."""

from __future__ import annotations

import socket
import struct

import msgspec

_UCRED = struct.Struct("3i")
"""``struct ucred``: process, user and group."""


class PeerProcess(msgspec.Struct, frozen=True, kw_only=True):
    """A process and its user, as they were when it connected or began to listen.

    ``pid`` is 0 for one that this process cannot see, in another PID namespace.
    """

    pid: int
    user: int


def peer_process(sock: socket.socket) -> PeerProcess:
    """The process at the other end of a connected Unix socket."""
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, user, _ = _UCRED.unpack(found)
    return PeerProcess(pid=pid, user=user)
