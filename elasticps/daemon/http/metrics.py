"""What machines ask a daemon: is it alive, is it ready, and its metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from aiohttp import web

from elasticps.daemon.http.body import as_json
from elasticps.daemon.machine_facts import until
from elasticps.daemon.metrics.collector import DaemonCollector, Scraped
from elasticps.daemon.node import Node
from elasticps.security.files import Reloaded


class MetricRoutes:
    """``/healthz`` and ``/readyz`` are answered to anyone, ``/metrics`` to who may read."""

    def __init__(self, node: Node) -> None:
        self._readiness = node.readiness
        self._scraped = Scraped(
            DaemonCollector(
                node.measured, node.view, lambda: not self._readiness.reasons(), _expiry(node)
            )
        )

    def routes(self) -> Iterable[web.RouteDef]:
        return (
            web.get("/healthz", self.healthy),
            web.get("/readyz", self.ready),
            web.get("/metrics", self.metrics),
        )

    async def healthy(self, _: web.Request) -> web.Response:
        return as_json({"ok": True})

    async def ready(self, _: web.Request) -> web.Response:
        reasons = self._readiness.reasons()
        return as_json({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def metrics(self, request: web.Request) -> web.Response:
        accept = ",".join(request.headers.getall("Accept", ()))
        text, content_type = self._scraped.text(accept)
        return web.Response(body=text, headers={"Content-Type": content_type})


def _expiry(node: Node) -> Callable[[], float | None]:
    """When the node's certificate ends; one that is put in its place counts at once."""
    security = node.config.security
    if security is None:
        return lambda: None
    cert = security.tls.cert
    ends = Reloaded([cert], lambda: until(cert))
    return lambda: ends.now
