"""Connections from this server to the servers that hold replicas of its blocks."""

from __future__ import annotations

import asyncio

from elasticps.core.ids import ServerId
from elasticps.errors import PeerUnavailable
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import Header, Kind
from elasticps.wire.messages import HelloMeta, Servers, encode

CONNECT_TIMEOUT_S = 2.0


class Peers:
    """One connection a peer, made when first asked for and made anew when it was lost."""

    def __init__(self, cluster: str, me: ServerId) -> None:
        self._hello = encode(HelloMeta(cluster=cluster, caller=me))
        self._addresses: dict[ServerId, Address] = {}
        self._connections: dict[ServerId, Connection] = {}
        self._connecting: dict[ServerId, asyncio.Lock] = {}

    def update(self, servers: Servers) -> None:
        """Learn where the living servers listen; connections to the dead are dropped."""
        self._addresses = {
            record.server: Address.parse(
                record.unix if record.server in servers.local else record.tcp
            )
            for record in servers.servers
        }
        for server in [server for server in self._connections if server not in self._addresses]:
            self._connections.pop(server).abort()
            self._connecting.pop(server, None)

    async def connection(self, server: ServerId) -> Connection:
        """An open connection that has said hello. Raises PeerUnavailable."""
        async with self._connecting.setdefault(server, asyncio.Lock()):
            known = self._connections.get(server)
            if known is not None and not known.closed:
                return known
            address = self._addresses.get(server)
            if address is None:
                raise PeerUnavailable("this server is not registered", where=server)
            made = await connect(address, timeout_s=CONNECT_TIMEOUT_S)
            try:
                hello = Header(Kind.HELLO)
                await made.request(hello, self._hello, timeout_s=CONNECT_TIMEOUT_S)
            except BaseException:
                made.abort()
                raise
            self._connections[server] = made
            return made

    def abort(self) -> None:
        for connection in self._connections.values():
            connection.abort()
        self._connections.clear()
