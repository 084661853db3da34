"""What the shard servers measure, asked from their daemons when a placement needs it.

Over HTTP and not through etcd: it is of interest to the leader alone, for seconds.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence

import aiohttp
import msgspec

from elasticps.core.ids import BlockId, JobKey, NodeId, ServerId
from elasticps.core.proposal import Load
from elasticps.core.records import NodeRecord
from elasticps.daemon.access import NodeAccess, asking
from elasticps.wire.control_messages import ServerLoad

log = logging.getLogger(__name__)

TIMEOUT = aiohttp.ClientTimeout(total=2.0)
ASKED_AT_ONCE = 32
FRESH_S = 2.0
"""Jobs that ask within this time share one round of answers."""


class LoadOfServer(msgspec.Struct, frozen=True, kw_only=True):
    """What one shard server said last; ``server`` is its life."""

    server: ServerId
    load: ServerLoad


class NodeLoad(msgspec.Struct, frozen=True, kw_only=True):
    """``GET /api/v1/load``: this node's shard servers, those that live and have spoken."""

    node: NodeId
    servers: tuple[LoadOfServer, ...] = ()


class LoadReports:
    """The newest answers of all nodes that answer."""

    def __init__(self, client: aiohttp.ClientSession, access: NodeAccess | None = None) -> None:
        self._client = client
        self._access = access
        self._asking = asyncio.Lock()
        self._asked_s = float("-inf")
        self._loads: list[LoadOfServer] = []

    async def look(self, records: Sequence[NodeRecord]) -> None:
        """Ask every node, unless that was done just now."""
        async with self._asking:
            if time.monotonic() - self._asked_s < FRESH_S:
                return
            window = asyncio.Semaphore(ASKED_AT_ONCE)
            answers = await asyncio.gather(*(self._ask(record, window) for record in records))
            self._loads = [each for answer in answers if answer for each in answer.servers]
            self._asked_s = time.monotonic()

    def totals(self) -> Mapping[ServerId, Load]:
        """What each server does, for all jobs."""
        return {each.server: each.load.total for each in self._loads}

    def of(self, job: JobKey) -> Mapping[tuple[ServerId, BlockId], Load]:
        """The job's hot blocks, by the server that leads them."""
        return {
            (each.server, row.block): row.load
            for each in self._loads
            for row in each.load.hot
            if row.job == job
        }

    async def _ask(self, record: NodeRecord, window: asyncio.Semaphore) -> NodeLoad | None:
        try:
            proof = asking(self._access, record)
            url = f"{record.http}/api/v1/load"
            async with window, self._client.get(url, timeout=TIMEOUT, **proof) as response:
                return msgspec.json.decode(await response.read(), type=NodeLoad)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            log.info("node=%s does not tell its load: %s", record.node, error)
            return None
