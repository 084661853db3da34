"""Connections, one a server or peer, made when asked for and made anew when lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Hashable
from typing import Generic, Protocol, TypeVar

from elasticps.core.ids import ServerId
from elasticps.errors import PeerUnavailable
from elasticps.security.tls import Secured
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.control_messages import Servers
from elasticps.wire.frame import Header, Kind
from elasticps.wire.messages import HelloMeta, encode
from elasticps.wire.traffic import TrafficBy
from elasticps.wire.transports import ALL, UNIX

CONNECT_TIMEOUT_S = 2.0

Name = TypeVar("Name", bound=Hashable)
Asked = TypeVar("Asked", contravariant=True)


class Credentials(Protocol[Asked]):
    """How a caller proves who it is, and others prove themselves to it."""

    def token(self) -> bytes:
        """The caller's pass as it is now."""
        ...

    def secured(self, name: Asked) -> Secured:
        """How to speak TLS with ``name``, and with nobody else."""
        ...


class ConnectionPool(Generic[Name]):
    """Open connections that have said hello as ``caller``; ``Name`` names the other ends.

    With ``credentials`` each TCP connection is TLS: there is no other way to the same end.
    ``traffic`` has what went over them, by transport.
    """

    def __init__(
        self,
        cluster: str,
        caller: str,
        address_of: Callable[[Name], Address | None],
        credentials: Credentials[Name] | None = None,
        traffic: TrafficBy | None = None,
    ) -> None:
        self.traffic = traffic or TrafficBy()
        self._cluster = cluster
        self._caller = caller
        self._credentials = credentials
        self._address_of = address_of
        self._connections: dict[Name, Connection] = {}
        self._connecting: dict[Name, asyncio.Event] = {}
        self._closed = False

    async def connection(self, name: Name) -> Connection:
        """An open connection to ``name``. Raises PeerUnavailable."""
        while True:
            self._check_open(name)
            known = self._connections.get(name)
            if known is not None and not known.closed:
                return known
            under_way = self._connecting.get(name)
            if under_way is None:
                return await self._connected(name)
            await under_way.wait()  # all who wait go on at once

    async def _connected(self, name: Name) -> Connection:
        over = self._connecting[name] = asyncio.Event()
        try:
            address = self._address_of(name)
            if address is None:
                raise PeerUnavailable("nobody of this name is registered", where=str(name))
            proof = self._credentials
            secured = proof.secured(name) if proof and address.transport == "tcp" else None
            made = await connect(
                address,
                timeout_s=CONNECT_TIMEOUT_S,
                secured=secured,
                traffic=self.traffic.of(address, tls=secured is not None),
            )
            try:
                await made.request(Header(Kind.HELLO), self._hello(), timeout_s=CONNECT_TIMEOUT_S)
                self._check_open(name)
            except BaseException:
                made.abort()
                raise
            self._connections[name] = made
            return made
        finally:
            del self._connecting[name]
            over.set()

    @property
    def transports(self) -> set[str]:
        """What its open connections go over: unix, tcp."""
        return {each.where.transport for each in self._connections.values() if not each.closed}

    def _hello(self) -> bytes:
        token = self._credentials.token() if self._credentials else b""
        return encode(HelloMeta(cluster=self._cluster, caller=self._caller, token=token))

    def forget_unlisted(self) -> None:
        """Drop the connections to those that have no address any more."""
        for name in [name for name in self._connections if self._address_of(name) is None]:
            self._connections.pop(name).abort()

    def _check_open(self, name: Name) -> None:
        if self._closed:
            raise PeerUnavailable("this side has closed its connections", where=str(name))

    async def aclose(self) -> None:
        """Close all there are; from now on there are no new ones. Idempotent."""
        self._closed = True
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            await connection.aclose()


def addresses_of(servers: Servers, transports: Collection[str] = ALL) -> dict[ServerId, Address]:
    """Where each listed server is best reached from this machine, by the transports given."""
    near = servers.local if UNIX in transports else frozenset()
    return {
        record.server: Address.parse(record.unix if record.server in near else record.tcp)
        for record in servers.servers
    }
