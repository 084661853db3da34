"""Where a peer listens: ``tcp:host:port``, ``tcp:[::1]:port`` or ``unix:/path``."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass
from typing import Literal

from elasticps.errors import UsageError

MAX_PORT = 65_535
MAX_HOST = 253
MAX_UNIX_PATH = 107
"""Bytes that ``sockaddr_un.sun_path`` holds on Linux, less its closing NUL."""

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*\.?")
_FORMS = "tcp:host:port, tcp:[ipv6]:port or unix:/path"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """One place to listen at or connect to. Its text form is ``str(address)``.

    ``host`` and ``port`` are for TCP, ``path`` is for a Unix socket; the others stay empty.
    Port 0 asks for any free port. Raises UsageError that names the bad part and its limit.
    """

    transport: Literal["tcp", "unix"]
    host: str = ""
    port: int = 0
    path: str = ""

    def __post_init__(self) -> None:
        if self.transport == "unix":
            _check_path(self.path)
        else:
            _check_host(self.host)
            _check_port(self.port)

    @classmethod
    def tcp(cls, host: str, port: int) -> Address:
        return cls(transport="tcp", host=host, port=port)

    @classmethod
    def unix(cls, path: str | os.PathLike[str]) -> Address:
        return cls(transport="unix", path=os.fspath(path))

    @classmethod
    def parse(cls, text: str) -> Address:
        """The address that ``text`` spells. Raises UsageError."""
        scheme, _, rest = text.partition(":")
        if scheme == "unix":
            return cls.unix(rest)
        if scheme == "tcp":
            return cls.tcp(*_split_host_port(rest))
        raise UsageError("unknown address scheme", where=text, field="scheme", limit=_FORMS)

    def __str__(self) -> str:
        if self.transport == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"tcp:{host}:{self.port}"


def _split_host_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon:
        raise UsageError("the address has no port", where=text, field="port", limit=_FORMS)
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if ":" not in host:
            raise UsageError("brackets are for IPv6", where=text, field="host", limit=_FORMS)
    elif ":" in host:
        raise UsageError(
            "an IPv6 host needs brackets", where=text, field="host", hint=f"tcp:[{host}]:{port}"
        )
    if not (port.isascii() and port.isdigit() and len(port) <= len(str(MAX_PORT))):
        raise UsageError("not a port", where=text, field="port", limit=f"0 to {MAX_PORT}")
    return host, int(port)


def _check_port(port: int) -> None:
    if not 0 <= port <= MAX_PORT:
        raise UsageError(f"not a port: {port}", field="port", limit=f"0 to {MAX_PORT}")


def _check_host(host: str) -> None:
    if ":" in host:
        try:
            ipaddress.IPv6Address(host)
        except ValueError as error:
            raise UsageError(f"not an IPv6 address: {error}", field="host") from None
    elif len(host) > MAX_HOST or not _HOST.fullmatch(host):
        raise UsageError(
            f"not a host name or address: {host[:80]!r}",
            field="host",
            limit=f"1 to {MAX_HOST} letters, digits, dots and hyphens",
        )


def _check_path(path: str) -> None:
    if not path.startswith("/") or "\0" in path:
        raise UsageError(
            f"not a socket path: {path[:80]!r}", field="path", limit="an absolute path without NUL"
        )
    size = len(os.fsencode(path))
    if size > MAX_UNIX_PATH:
        raise UsageError(
            f"a socket path of {size} bytes is too long",
            where=path[:80],
            field="path",
            limit=f"{MAX_UNIX_PATH} bytes",
        )
