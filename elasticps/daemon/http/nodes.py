"""Requests about the cluster and its nodes."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
from aiohttp import web

from elasticps.core.ids import JobName, node_of
from elasticps.core.placement import moves
from elasticps.core.proposal import Placed
from elasticps.core.records import DrainRecord, encode
from elasticps.daemon.http.body import as_json, body_of, node_named
from elasticps.daemon.http.status import ClusterStatus, local_status
from elasticps.daemon.leader import NONE_PLACED, homes_wanted
from elasticps.daemon.load_reports import NodeLoad
from elasticps.daemon.node import Node
from elasticps.daemon.view import ClusterView


class DrainBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    stay: bool = False


class NodeRoutes:
    def __init__(self, node: Node, status: ClusterStatus) -> None:
        self._node = node
        self._view = node.view
        self._status = status

    def routes(self) -> Iterable[web.RouteDef]:
        return (
            web.get("/api/v1/status", self.cluster),
            web.get("/api/v1/local", self.local),
            web.get("/api/v1/load", self.load),
            web.get("/api/v1/nodes", self.nodes),
            web.post("/api/v1/nodes/{node}/drain", self.drain),
            web.delete("/api/v1/nodes/{node}/drain", self.undrain),
            web.post("/api/v1/nodes/{node}/restart", self.restart),
            web.get("/api/v1/rebalance", self.rebalance),
            web.post("/api/v1/rebalance", self.start_rebalance),
        )

    async def cluster(self, _: web.Request) -> web.Response:
        return as_json(await self._status.cluster())

    async def local(self, _: web.Request) -> web.Response:
        return as_json(local_status(self._node))

    async def load(self, _: web.Request) -> web.Response:
        server = self._node.server
        life = server.record.server if server.record else None
        return as_json(NodeLoad(node=self._node.name, server=life, load=server.load))

    async def nodes(self, _: web.Request) -> web.Response:
        return as_json({"nodes": await self._status.nodes()})

    async def drain(self, request: web.Request) -> web.Response:
        """Mark a node to be emptied; the leader moves its blocks and workers off."""
        name = node_named(self._view, request)
        body = await body_of(request, DrainBody)
        record = DrainRecord(stay=body.stay)
        await self._node.store.put(self._node.keys.drain(name), encode(record))
        return as_json(await self._status.node(name), status=202)

    async def restart(self, request: web.Request) -> web.Response:
        """Drain a node; its daemon then ends, and is started again."""
        name = node_named(self._view, request)
        record = DrainRecord(restart=True)
        await self._node.store.put(self._node.keys.drain(name), encode(record))
        return as_json(await self._status.node(name), status=202)

    async def undrain(self, request: web.Request) -> web.Response:
        name = node_named(self._view, request)
        await self._node.store.delete(self._node.keys.drain(name))
        return as_json(await self._status.node(name))

    async def rebalance(self, _: web.Request) -> web.Response:
        return as_json(self._moves())

    async def start_rebalance(self, _: web.Request) -> web.Response:
        """Wake the leader, which plans whenever anything changes."""
        await self._node.store.put(self._node.keys.rebalance, str(time.time()).encode())
        return as_json(self._moves(), status=202)

    def _moves(self) -> dict[str, Any]:
        return rebalance_plan(self._view, self._node.placed)


def rebalance_plan(
    view: ClusterView, placed: Mapping[JobName, Placed] = NONE_PLACED
) -> dict[str, Any]:
    """The copies that the present state calls for, those under way included.

    What the placements of jobs said (``placed``) is known to the leader alone.
    """
    rows: list[dict[str, Any]] = []
    for job in view.active_jobs:
        entries = job.entries
        if job.spec is None or not entries or len(entries) < len(job.sizes):
            continue
        wanted = homes_wanted(view, job, job.spec, placed.get(job.name, Placed()))
        holders = [entry.holders for entry in entries]
        rows += [
            {
                "job": job.name,
                "block": move.block,
                "source": node_of(move.source) if move.source else None,
                "target": node_of(move.target),
                "bytes": move.size,
            }
            for move in moves(job.sizes, holders, wanted)
        ]
    under_way = sum(bool(entry.learners) for job in view.active_jobs for entry in job.entries)
    return {
        "moves": rows,
        "bytes": sum(row["bytes"] for row in rows),
        "pending_moves": under_way,
    }
