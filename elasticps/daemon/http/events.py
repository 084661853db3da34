"""Requests about what has happened, and about where blocks lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from aiohttp import web

from elasticps.core.ids import BlockId, JobName, NodeId
from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.http.body import as_json, job_called, number_in
from elasticps.daemon.node import Node
from elasticps.errors import UsageError

DEFAULT_EVENTS = 100
MOST_EVENTS = 1000
DEFAULT_ROWS = 100
MOST_ROWS = 1000
MOST_BLOCKS = 2**31


class EventRoutes:
    def __init__(self, node: Node, block_map: BlockMap) -> None:
        self._node = node
        self._map = block_map
        self._encoded: dict[JobName | None, bytes] = {}
        self._encoded_revision = -1

    def routes(self) -> Iterable[web.RouteDef]:
        return (
            web.get("/api/v1/events", self.events),
            web.get("/api/v1/blocks", self.blocks),
        )

    async def events(self, request: web.Request) -> web.Response:
        """The timeline as this daemon has seen it."""
        query = request.query
        page = self._node.timeline.page(
            query.get("after"),
            limit=number_in(request, "limit", DEFAULT_EVENTS, 1, MOST_EVENTS),
            job=JobName(query["job"]) if "job" in query else None,
            node=NodeId(query["node"]) if "node" in query else None,
        )
        return as_json(page)

    async def blocks(self, request: web.Request) -> web.Response:
        """What each node holds; with ``node``, ``after`` or ``limit`` one job's blocks too."""
        query = request.query
        name = JobName(query["job"]) if "job" in query else None
        if name is not None:
            job_called(self._node.view, name)
        if not query.keys() & {"node", "after", "limit"}:
            body = self._aggregates(name)
            return web.Response(body=body, content_type="application/json")
        if name is None:
            raise UsageError("rows are of one job's blocks", field="job", limit="a job's name")
        rows, last = self._map.rows(
            name,
            NodeId(query["node"]) if "node" in query else None,
            BlockId(number_in(request, "after", -1, -1, MOST_BLOCKS)),
            number_in(request, "limit", DEFAULT_ROWS, 1, MOST_ROWS),
        )
        return as_json(self._answer(name) | {"rows": rows, "next": last})

    def _answer(self, name: JobName | None) -> dict[str, Any]:
        return {"nodes": self._map.nodes(name), "blocks": self._map.blocks(name)}

    def _aggregates(self, name: JobName | None) -> bytes:
        """As JSON; made once for each revision of the view, whoever asks."""
        revision = self._map.totals().revision
        if self._encoded_revision != revision:
            self._encoded, self._encoded_revision = {}, revision
        if name not in self._encoded:
            self._encoded[name] = msgspec.json.encode(self._answer(name))
        return self._encoded[name]
