"""Requests about what has happened, and about where blocks lie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from aiohttp import web

from elasticps.core.ids import BlockId, JobName, NodeId
from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.http.answers import BlockRows, BlocksAnswer
from elasticps.daemon.http.body import as_json, job_called, query_of
from elasticps.daemon.http.contract import Query, operation, routes_of
from elasticps.daemon.node import Node
from elasticps.daemon.timeline import EventPage
from elasticps.errors import UsageError
from elasticps.security.tokens import Role

MOST_EVENTS = 1000
MOST_ROWS = 1000
MOST_BLOCKS = 2**31
DEFAULT_ROWS = 100
BEFORE_ALL = -1


class EventsQuery(Query, frozen=True):
    after: Annotated[
        str | None, msgspec.Meta(description="The `next` of the page before, or an event's id.")
    ] = None
    limit: Annotated[
        int, msgspec.Meta(ge=1, le=MOST_EVENTS, description="How many events at most.")
    ] = 100
    job: Annotated[str | None, msgspec.Meta(description="Of this job alone.")] = None
    node: Annotated[str | None, msgspec.Meta(description="Of this node alone.")] = None


class BlocksQuery(Query, frozen=True):
    """With ``node``, ``after`` or ``limit`` the answer has rows."""

    job: Annotated[str | None, msgspec.Meta(description="Of this job alone.")] = None
    node: Annotated[str | None, msgspec.Meta(description="Rows of what this node holds.")] = None
    after: Annotated[
        int, msgspec.Meta(ge=-1, le=MOST_BLOCKS, description="The `next` of the page before.")
    ] = BEFORE_ALL
    limit: Annotated[
        int, msgspec.Meta(ge=0, le=MOST_ROWS, description="How many rows at most; 0: 100.")
    ] = 0


class EventRoutes:
    def __init__(self, node: Node, block_map: BlockMap) -> None:
        self._node = node
        self._map = block_map
        self._encoded: dict[JobName | None, bytes] = {}
        self._encoded_revision = -1

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "GET",
        "/api/v1/events",
        "The timeline as the daemon that is asked has seen it, the oldest event first",
        role=Role.READ,
        query=EventsQuery,
        answer=EventPage,
    )
    async def events(self, request: web.Request) -> web.Response:
        asked = query_of(request, EventsQuery)
        page = self._node.timeline.page(
            asked.after,
            limit=asked.limit,
            job=JobName(asked.job) if asked.job is not None else None,
            node=NodeId(asked.node) if asked.node is not None else None,
        )
        return as_json(page)

    @operation(
        "GET",
        "/api/v1/blocks",
        "What each node holds; with node, after or limit one job's blocks too",
        role=Role.READ,
        query=BlocksQuery,
        answer=(BlocksAnswer, BlockRows),
        names=True,
    )
    async def blocks(self, request: web.Request) -> web.Response:
        asked = query_of(request, BlocksQuery)
        name = JobName(asked.job) if asked.job is not None else None
        if name is not None:
            job_called(self._node.view, name)
        if asked == BlocksQuery(job=asked.job):
            body = self._aggregates(name)
            return web.Response(body=body, content_type="application/json")
        if name is None:
            raise UsageError("rows are of one job's blocks", field="job", limit="a job's name")
        rows, last = self._map.rows(
            name,
            NodeId(asked.node) if asked.node is not None else None,
            BlockId(asked.after),
            asked.limit or DEFAULT_ROWS,
        )
        nodes, blocks = self._map.nodes(name), self._map.blocks(name)
        return as_json(BlockRows(nodes=nodes, blocks=blocks, rows=rows, next=last))

    def _aggregates(self, name: JobName | None) -> bytes:
        """As JSON; made once for each revision of the view, whoever asks."""
        revision = self._map.totals().revision
        if self._encoded_revision != revision:
            self._encoded, self._encoded_revision = {}, revision
        if name not in self._encoded:
            self._encoded[name] = msgspec.json.encode(
                BlocksAnswer(nodes=self._map.nodes(name), blocks=self._map.blocks(name))
            )
        return self._encoded[name]
