"""Requests about the cluster and its nodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import msgspec
from aiohttp import web

from elasticps.core.ids import JobKey, node_of
from elasticps.core.placement import moves
from elasticps.core.proposal import Placed
from elasticps.core.records import DrainRecord, encode
from elasticps.daemon.http.answers import (
    ClusterRows,
    GoneNode,
    LocalStatus,
    MoveRow,
    MovesAnswer,
    NodeRow,
    NodesPage,
)
from elasticps.daemon.http.body import as_json, body_of, node_named, query_of
from elasticps.daemon.http.contract import operation, routes_of
from elasticps.daemon.http.pages import NodesQuery
from elasticps.daemon.http.repeats import Repeats
from elasticps.daemon.http.status import ClusterStatus, local_status
from elasticps.daemon.leader import NONE_PLACED, homes_wanted
from elasticps.daemon.load_reports import LoadOfServer, NodeLoad
from elasticps.daemon.node import Node
from elasticps.daemon.view import ClusterView
from elasticps.security.tokens import Role
from elasticps.store import Put


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``stay``: the daemon goes on, holding nothing."""

    stay: bool = False


class NodeRoutes:
    def __init__(self, node: Node, status: ClusterStatus, repeats: Repeats) -> None:
        self._node = node
        self._view = node.view
        self._status = status
        self._repeats = repeats

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation("GET", "/api/v1/status", "The whole cluster", role=Role.READ, answer=ClusterRows)
    async def status(self, _: web.Request) -> web.Response:
        return as_json(await self._status.cluster())

    @operation(
        "GET",
        "/api/v1/local",
        "What the daemon that is asked knows of its own node",
        role=Role.READ,
        answer=LocalStatus,
    )
    async def local(self, _: web.Request) -> web.Response:
        return as_json(local_status(self._node))

    @operation(
        "GET",
        "/api/v1/load",
        "What the shard servers of the daemon that is asked do",
        role=Role.READ,
        answer=NodeLoad,
    )
    async def load(self, _: web.Request) -> web.Response:
        loads = (
            LoadOfServer(server=each.record.server, load=each.load)
            for each in self._node.servers.children.values()
            if each.record is not None and each.load is not None
        )
        return as_json(NodeLoad(node=self._node.name, servers=tuple(loads)))

    @operation(
        "GET",
        "/api/v1/nodes",
        "The nodes, by name",
        role=Role.READ,
        query=NodesQuery,
        answer=NodesPage,
    )
    async def nodes(self, request: web.Request) -> web.Response:
        return as_json(await self._status.nodes(query_of(request, NodesQuery)))

    @operation(
        "POST",
        "/api/v1/nodes/{node}/drain",
        "Move everything off a node, then let it leave",
        role=Role.ADMIN,
        body=DrainBody,
        answer=(NodeRow, GoneNode),
        status=202,
        keyed=True,
    )
    async def drain(self, request: web.Request) -> web.Response:
        """The leader moves its blocks and workers off; with ``stay`` the daemon goes on, empty."""
        body = await body_of(request, DrainBody)
        return await self._mark(request, DrainRecord(stay=body.stay))

    @operation(
        "POST",
        "/api/v1/nodes/{node}/restart",
        "Drain a node; its daemon then ends, and is started again",
        role=Role.ADMIN,
        answer=(NodeRow, GoneNode),
        status=202,
        keyed=True,
    )
    async def restart(self, request: web.Request) -> web.Response:
        return await self._mark(request, DrainRecord(restart=True))

    async def _mark(self, request: web.Request, record: DrainRecord) -> web.Response:
        done = await self._repeats.earlier(request)
        if done is None:
            name = node_named(self._view, request)
            row = await self._status.node(name)
            if isinstance(row, NodeRow):
                state = self._status.state(name, asked_to_leave=True)
                row = msgspec.structs.replace(row, state=state)
            put = Put(self._node.keys.drain(name), encode(record))
            done = await self._repeats.write(request, put, row)
            assert done is not None
        return done.response(202)

    @operation(
        "DELETE",
        "/api/v1/nodes/{node}/drain",
        "Take a drain back",
        role=Role.ADMIN,
        answer=(NodeRow, GoneNode),
    )
    async def undrain(self, request: web.Request) -> web.Response:
        name = node_named(self._view, request)
        await self._node.store.delete(self._node.keys.drain(name))
        return as_json(await self._status.node(name))

    @operation(
        "GET",
        "/api/v1/rebalance",
        "What a rebalance would move, without starting it",
        role=Role.READ,
        answer=MovesAnswer,
    )
    async def rebalance(self, _: web.Request) -> web.Response:
        return as_json(self._moves())

    @operation(
        "POST",
        "/api/v1/rebalance",
        "Spread the blocks over the nodes anew",
        role=Role.ADMIN,
        answer=MovesAnswer,
        status=202,
    )
    async def start_rebalance(self, _: web.Request) -> web.Response:
        """Wakes the leader, which plans whenever anything changes: asking twice does no harm."""
        await self._node.store.put(self._node.keys.rebalance, str(time.time()).encode())
        return as_json(self._moves(), status=202)

    def _moves(self) -> MovesAnswer:
        return rebalance_plan(self._view, self._node.placed)


def rebalance_plan(view: ClusterView, placed: Mapping[JobKey, Placed] = NONE_PLACED) -> MovesAnswer:
    """The copies that the present state calls for, those under way included.

    What the placements of jobs said (``placed``) is known to the leader alone.
    """
    rows: list[MoveRow] = []
    for job in view.active_jobs:
        entries = job.entries
        if job.spec is None or not entries or len(entries) < len(job.sizes):
            continue
        wanted = homes_wanted(view, job, job.spec, placed.get(job.key, Placed()))
        holders = [entry.holders for entry in entries]
        rows += [
            MoveRow(
                job=job.name,
                block=move.block,
                source=node_of(move.source) if move.source else None,
                target=node_of(move.target),
                bytes=move.size,
            )
            for move in moves(job.sizes, holders, wanted)
        ]
    under_way = sum(bool(entry.learners) for job in view.active_jobs for entry in job.entries)
    return MovesAnswer(
        moves=tuple(rows), bytes=sum(row.bytes for row in rows), pending_moves=under_way
    )
