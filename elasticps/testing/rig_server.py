"""One shard server of a rig: its life on real sockets, and what a test asks and does to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from elasticps.core.ids import LEDGER, BlockId, JobKey, ServerId, node_of
from elasticps.core.placement import Site
from elasticps.core.records import CaughtUpRow, ServerRecord
from elasticps.errors import ElasticError, WireError
from elasticps.server.hosted import Hosted
from elasticps.server.ledger_host import LedgerHost
from elasticps.server.main import ShardServer
from elasticps.server.parameter_block import ParameterBlock
from elasticps.server.session import Session
from elasticps.testing.waiting import PATIENCE_S, eventually
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.control_messages import Control
from elasticps.wire.frame import Header, Kind
from elasticps.wire.listener import Listener, listen
from elasticps.wire.messages import HelloMeta, encode
from elasticps.wire.region_socket import RegionSocket

CLUSTER = "rig"
JOB = JobKey(1)
TICK_S = 1e-6

Lag = Callable[[], float]
_NOBODY = cast("Connection", None)
"""The channel that a message from the rig came by."""


class _Stopped(Exception):
    """Ends a server's task group."""


class Child:
    """Somebody who is told things by the rig, each after some lag, in order."""

    def __init__(self, hear: Callable[[Control], None], lag: Lag) -> None:
        self._hear = hear
        self._lag = lag
        self._due = 0.0
        self._deaf = False

    def tell(self, message: Control) -> None:
        loop = asyncio.get_running_loop()
        self._due = max(self._due + TICK_S, loop.time() + self._lag())
        loop.call_at(self._due, self._hear_if_alive, message)

    def _hear_if_alive(self, message: Control) -> None:
        if not self._deaf:
            self._hear(message)

    def stop(self) -> None:
        self._deaf = True


@dataclass(slots=True, eq=False)
class RigServer:
    """One life of a shard server.

    ``promises`` is what it reported last, ``errors`` the broken rules it closed connections for.
    """

    server: ShardServer
    record: ServerRecord
    site: Site
    listeners: tuple[Listener, Listener]
    sessions: dict[Connection, Session]
    child: Child
    errors: list[ElasticError]
    stopped: asyncio.Event = field(default_factory=asyncio.Event)
    promises: tuple[CaughtUpRow, ...] = ()

    @property
    def id(self) -> ServerId:
        return self.record.server

    @property
    def tcp(self) -> Address:
        return self.listeners[0].address

    @contextlib.asynccontextmanager
    async def spoken_to(self, caller: object, *, local: bool = False) -> AsyncIterator[Connection]:
        """A connection that has said hello as ``caller``; without hello if that is empty.

        ``local``: over the Unix socket.
        """
        address = self.listeners[1].address if local else self.tcp
        async with await connect(address, timeout_s=PATIENCE_S) as conn:
            if caller:
                hello = encode(HelloMeta(cluster=CLUSTER, caller=str(caller)))
                await conn.request(Header(Kind.HELLO), hello, timeout_s=PATIENCE_S)
            yield conn

    def connections_from(self, caller: ServerId) -> list[Connection]:
        return [conn for conn, session in self.sessions.items() if session._caller == caller]

    def forget_closed(self) -> None:
        """Keep no connection of the past alive."""
        self.errors.clear()
        for conn in [conn for conn in self.sessions if conn.closed]:
            del self.sessions[conn]

    @property
    def receives(self) -> bool:
        """True while a payload is on its way in: some of its bytes may be here."""
        return any(session._incoming is not None for session in self.sessions.values())

    def cut(self) -> None:
        """Reset every data connection from and to this server."""
        for connection in [*self.sessions, *self.server.peers._connections.values()]:
            connection.abort()

    def replica(self, block: BlockId) -> Hosted | None:
        return self.server.table.replica(JOB, block)

    def parameter_block(self, block: BlockId) -> ParameterBlock:
        found = self.replica(block)
        assert isinstance(found, ParameterBlock)
        return found

    def ledger_host(self) -> LedgerHost:
        found = self.replica(LEDGER)
        assert isinstance(found, LedgerHost)
        return found

    async def hear_promises(self, on_change: Callable[[], None]) -> None:
        while True:
            self.promises = (await self.server.promises.get()).rows
            on_change()

    async def aclose(self) -> None:
        self.child.stop()
        self.stopped.set()
        await eventually(lambda: all(not listener.connections for listener in self.listeners))


async def serve(
    me: ServerId,
    directory: Path,
    lag: Lag,
    started: asyncio.Future[RigServer],
    on_promises: Callable[[], None],
) -> None:
    """A server's life, as ``elasticps.server.main`` leads it but for the daemon's channel."""
    with contextlib.suppress(_Stopped):
        try:
            async with asyncio.TaskGroup() as tasks:
                server = ShardServer(CLUSTER, me, tasks)
                async with _listening(server, me, directory, lag) as made:
                    tasks.create_task(made.hear_promises(on_promises))
                    started.set_result(made)
                    await made.stopped.wait()
                server.table.close()
                await server.peers.aclose()
                raise _Stopped
        except* _Stopped:
            raise _Stopped from None


@contextlib.asynccontextmanager
async def _listening(
    server: ShardServer, me: ServerId, directory: Path, lag: Lag
) -> AsyncIterator[RigServer]:
    sessions: dict[Connection, Session] = {}
    errors: list[ElasticError] = []

    def session(conn: Connection) -> Session:
        sessions[conn] = Session(CLUSTER, server.table, server.lease, passing=passing)
        return sessions[conn]

    def note(conn: Connection, error: ElasticError) -> None:
        if isinstance(error, WireError):
            errors.append(error)

    unix_path = directory / f"{me.replace('/', '.')}.sock"
    addresses = Address.tcp("127.0.0.1", 0), Address.unix(unix_path)
    over_tcp, over_unix = (server.peers.traffic.of(address) for address in addresses)
    passing = RegionSocket(addresses[1], traffic=server.peers.traffic.by_transport["shm"])
    async with (
        passing,
        listen(addresses[0], session, on_error=note, traffic=over_tcp) as tcp,
        listen(addresses[1], session, on_error=note, traffic=over_unix) as unix,
    ):
        server.listeners = (tcp, unix)
        yield RigServer(
            server=server,
            record=ServerRecord(server=me, tcp=str(tcp.address), unix=str(unix.address)),
            site=Site(server=me, node=node_of(me)),
            listeners=(tcp, unix),
            sessions=sessions,
            errors=errors,
            child=Child(lambda message: server.on_message(_NOBODY, message), lag),
        )
