"""Are the daemon's ports free, or its own already?"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from pathlib import Path

from elasticps.doctor.finding import Finding, fault, ok, unchecked
from elasticps.doctor.setup import Setup, told_by
from elasticps.wire.peer_process import peer_process

LISTENING = "0A"
"""TCP_LISTEN in /proc/net/tcp."""
CONTROL = "control.sock"
"""Where the daemon listens for its children, in its runtime_dir."""


async def ports(setup: Setup) -> list[Finding]:
    runtime = setup.path("runtime_dir")
    daemon = _listener(runtime / CONTROL) if runtime else None
    host, first = setup.listens("data")
    servers = setup.shard_servers if first else 1
    data = [_port("data", host, first + number, daemon) for number in range(servers)]
    return [_port("http", *setup.listens("http"), daemon), *data]


def _port(key: str, host: str, port: int, daemon: int | None) -> Finding:
    place = f"{key} {host}:{port}"
    if port == 0:
        return ok(f"{place}: any free port")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(*found[0][:3]) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind(found[0][4])
            sock.listen(1)
    except OSError as error:
        another = f"another port by {told_by(key)}"
        if error.errno == errno.EADDRINUSE:
            return _taken(place, port, another, daemon)
        if error.errno == errno.EACCES:
            return fault(f"{place}: this user may not have it", fix=f"{another}, 1024 or higher")
        return unchecked(f"{place}: {error.strerror}", fix="see the check addresses")
    return ok(f"{place} is free")


def _taken(place: str, port: int, another: str, daemon: int | None) -> Finding:
    holder = _holder(port)
    if holder is None:
        return unchecked(f"{place} is taken; root alone sees by whom", fix="sudo elasticps doctor")
    pid, command = holder
    if daemon is not None and daemon in (pid, _parent(pid)):
        return ok(f"{place}: this node's daemon has it, process {daemon}")
    return fault(f"{place} is taken by process {pid}, {command[:60]}", fix=f"end it, or {another}")


def _listener(path: Path) -> int | None:
    """The process behind a Unix socket; None where none is, or it is another user's."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
        except OSError:
            return None
        return peer_process(sock).pid


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _holder(port: int) -> tuple[int, str] | None:
    """The process that listens at the port in this network namespace, and its command line."""
    inodes = {row for name in ("tcp", "tcp6") for row in _listening(name, port)}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            links = set(_links(entry / "fd"))
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode().strip()
        except OSError:  # gone, or another user's
            continue
        if any(f"socket:[{inode}]" in links for inode in inodes):
            return int(entry.name), command
    return None


def _links(descriptors: Path) -> Iterator[str]:
    for each in descriptors.iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            yield str(each.readlink())


def _listening(name: str, port: int) -> list[str]:
    try:
        lines = Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    except OSError:
        return []
    rows = [line.split() for line in lines]
    return [
        row[9] for row in rows if row[3] == LISTENING and int(row[1].rpartition(":")[2], 16) == port
    ]
