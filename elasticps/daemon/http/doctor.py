"""What ``elasticps doctor`` asks of each node: its machine's facts, and its links to others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Annotated

import msgspec
from aiohttp import web

from elasticps.core.consistency import documented
from elasticps.core.ids import NodeId
from elasticps.daemon.http.body import as_json, body_of
from elasticps.daemon.http.contract import operation, routes_of
from elasticps.daemon.link_probe import MAX_BYTES, LinkProbe
from elasticps.daemon.machine_facts import MachineFacts, machine_facts
from elasticps.daemon.measured_link import Links
from elasticps.daemon.node import Node
from elasticps.errors import UsageError
from elasticps.security.tokens import Role


class LinksBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """To which nodes, by default all others; ``bytes`` 0 sends none, to see if they answer."""

    to: tuple[NodeId, ...] = ()
    bytes: Annotated[int, documented(0, MAX_BYTES)] = 0


class DoctorRoutes:
    def __init__(self, node: Node) -> None:
        self._node = node
        self._probe = LinkProbe(node.view, node.config.cluster, node.name, node.access)

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "GET",
        "/api/v1/machine",
        "The machine of the daemon that is asked",
        role=Role.READ,
        answer=MachineFacts,
    )
    async def machine(self, _: web.Request) -> web.Response:
        config = self._node.config
        folders = {"state_dir": config.state_dir, "log_dir": config.log_dir}
        certificate = config.security.tls.cert if config.security else None
        # A folder may lie on a disk that hangs, and the lease must not.
        return as_json(await asyncio.to_thread(machine_facts, folders, certificate))

    @operation(
        "POST",
        "/api/v1/links",
        "Measure the links from the node that is asked: it takes the network",
        role=Role.ADMIN,
        body=LinksBody,
        answer=Links,
    )
    async def links(self, request: web.Request) -> web.Response:
        body = await body_of(request, LinksBody)
        if not 0 <= body.bytes <= MAX_BYTES:
            raise UsageError(f"{body.bytes} bytes", field="bytes", limit=f"0 to {MAX_BYTES}")
        known = self._node.view.nodes
        for name in body.to:
            if name not in known or name == self._node.name:
                raise UsageError(
                    f"no other node is {name[:80]!r}",
                    field="to",
                    limit=", ".join(sorted(set(known) - {self._node.name})) or "no other node",
                )
        names = body.to or sorted(set(known) - {self._node.name})
        links = await self._probe.measure(list(dict.fromkeys(names)), body.bytes)
        return as_json(Links(node=self._node.name, links=links))
