"""How far and how wide it is from this node to others, measured as the data plane goes there.

That is a connection to the other's data port with this node's certificate, where the cluster has
some, and frames that the shard server there drops and answers. A transfer costs a fixed time and a
time for each byte (Hockney 1994); the first is the least round trip of an empty frame, the second
what some megabytes take in pieces, of which several are under way.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from contextlib import aclosing

from elasticps.core.ids import NodeId, ServerId, server_of
from elasticps.daemon.access import NodeAccess
from elasticps.daemon.measured_link import MeasuredLink
from elasticps.daemon.view import ClusterView
from elasticps.errors import ElasticError
from elasticps.server.admission import ServerCredentials
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind
from elasticps.wire.pool import ConnectionPool

ROUND_TRIPS = 8
MAX_BYTES = 64 << 20
FIRST_PIECE, PIECE = 32 << 10, 256 << 10
"""A link on which the first goes slowly is given small pieces, one after the other."""
SLOW_BYTES_PER_S = 1e6
UNDER_WAY = 8
SENDING_S = 2.0
"""No piece is begun after so long; what is under way then comes to its end."""
ANSWER_S = 10.0
TOGETHER = 16
"""How many nodes are asked at a time whether they answer; the width is measured one by one."""


class LinkProbe:
    """Measures from one node; one measurement at a time, so that none disturbs another."""

    def __init__(
        self, view: ClusterView, cluster: str, node: NodeId, access: NodeAccess | None
    ) -> None:
        self._view = view
        self._cluster = cluster
        self._me = server_of(node, "probe")
        self._credentials = ServerCredentials(access.tls, cluster, self._me) if access else None
        self._turn = asyncio.Lock()

    async def measure(self, nodes: Sequence[NodeId], nbytes: int) -> list[MeasuredLink]:
        """The links to ``nodes``; the width too where ``nbytes`` is not 0. Raises nothing."""
        together = asyncio.Semaphore(1 if nbytes else TOGETHER)

        async def one(node: NodeId) -> MeasuredLink:
            async with together:
                return await self._link(node, nbytes)

        async with self._turn:
            return list(await asyncio.gather(*map(one, nodes)))

    async def _link(self, node: NodeId, nbytes: int) -> MeasuredLink:
        record = self._view.nodes.get(node)
        if record is None or not record.servers:
            return MeasuredLink(to=node, error="it has no shard server now")
        server = record.servers[0]
        pool: ConnectionPool[ServerId] = ConnectionPool(
            self._cluster, self._me, lambda _: Address.parse(server.tcp), self._credentials
        )
        round_trip_s = None
        try:
            async with aclosing(pool):
                connection = await pool.connection(server.server)
                round_trip_s = await _round_trip(connection)
                rate = await _rate(connection, nbytes, round_trip_s) if nbytes else None
        except ElasticError as error:
            return MeasuredLink(
                to=node, round_trip_s=round_trip_s, error=f"{error.what} ({server.tcp})"
            )
        return MeasuredLink(to=node, round_trip_s=round_trip_s, bytes_per_s=rate)


async def _round_trip(connection: Connection) -> float:
    """Seconds of the fastest."""
    times = []
    for _ in range(ROUND_TRIPS):
        began = time.monotonic()
        await _send(connection, b"")
        times.append(time.monotonic() - began)
    return min(times)


async def _rate(connection: Connection, nbytes: int, round_trip_s: float) -> float:
    """Bytes a second."""
    began = time.monotonic()
    await _send(connection, os.urandom(FIRST_PIECE))
    first = FIRST_PIECE / max(time.monotonic() - began - round_trip_s, 1e-6)
    is_slow = first < SLOW_BYTES_PER_S
    piece = os.urandom(FIRST_PIECE if is_slow else PIECE)  # nothing on the way makes it smaller
    left = max(1, nbytes // len(piece))
    sent = 0
    began = time.monotonic()

    async def send() -> None:
        nonlocal left, sent
        while left > 0 and time.monotonic() - began < SENDING_S:
            left -= 1
            await _send(connection, piece)
            sent += len(piece)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(1 if is_slow else UNDER_WAY):
            tasks.create_task(send())
    return sent / max(time.monotonic() - began - round_trip_s, 1e-6)


async def _send(connection: Connection, payload: bytes) -> None:
    await connection.request(Header(Kind.PROBE), payload=payload or None, timeout_s=ANSWER_S)
