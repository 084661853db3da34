"""The aiohttp application: routes, errors as JSON, and its life."""

from __future__ import annotations

import ipaddress
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
from aiohttp import web
from aiohttp.typedefs import Handler

from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.http.body import read_strictly
from elasticps.daemon.http.checkpoints import CheckpointRoutes
from elasticps.daemon.http.dashboard import DashboardRoutes
from elasticps.daemon.http.doctor import DoctorRoutes
from elasticps.daemon.http.events import EventRoutes
from elasticps.daemon.http.forget import ForgetRoutes
from elasticps.daemon.http.guard import guard
from elasticps.daemon.http.jobs import JobRoutes
from elasticps.daemon.http.metrics import MetricRoutes
from elasticps.daemon.http.nodes import NodeRoutes
from elasticps.daemon.http.openapi import OpenApiRoutes
from elasticps.daemon.http.profile import ProfileRoutes
from elasticps.daemon.http.refusals import MAX_BODY_BYTES, PlainRefusals, errors_as_json
from elasticps.daemon.http.repeats import Repeats
from elasticps.daemon.http.scale import ScaleRoutes
from elasticps.daemon.http.series import SeriesRoutes
from elasticps.daemon.http.status import ClusterStatus
from elasticps.daemon.http.stream import Broadcast, StreamRoutes
from elasticps.daemon.node import Node
from elasticps.errors import AccessDenied, UsageError

log = logging.getLogger(__name__)

SHUTDOWN_S = 1.0
HEADERS_S = 60.0
"""How long a connection may be idle, or take for the headers of its next request."""
LINGERING_S = 1.0
"""How long what still comes of a refused body is read, so that the refusal arrives."""


@asynccontextmanager
async def serve_http(node: Node) -> AsyncIterator[str]:
    """Serve the API at the configured address while in the block; gives the URL it has.

    Raises UsageError when the port is taken.
    """
    host, port = node.config.http
    async with aiohttp.ClientSession() as client:
        runner = bounded(application(node, client))
        await runner.setup()
        try:
            context = node.access.tls.server() if node.access else None
            site = web.TCPSite(runner, host, port, ssl_context=context)
            try:
                await site.start()
            except OSError as error:
                raise UsageError(
                    f"cannot serve HTTP at {host}:{port}: {error.strerror}",
                    field="http",
                    hint="choose another port with --http",
                ) from error
            address = runner.addresses[0]
            name = f"[{address[0]}]" if ":" in address[0] else address[0]
            yield f"{'https' if context else 'http'}://{name}:{address[1]}"
        finally:
            await runner.cleanup()


def bounded(app: web.Application) -> web.AppRunner:
    """What serves ``app``, and for how long it hears who says nothing."""
    return web.AppRunner(
        app,
        access_log=None,
        logger=_protocol_log(),
        shutdown_timeout=SHUTDOWN_S,
        lingering_time=LINGERING_S,
        keepalive_timeout=HEADERS_S,
        auto_decompress=False,  # what is encoded is refused, and never inflated
    )


def application(node: Node, client: aiohttp.ClientSession) -> web.Application:
    """All routes, each behind who may ask and what may be sent."""
    proven = guard(node.access) if node.access else _asked_by_address
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[errors_as_json, _own_pages_alone, proven, read_strictly],
    )
    block_map = BlockMap(node.view, node.timeline)
    status, repeats = ClusterStatus(node, client, block_map), Repeats(node.store, node.keys)
    series = SeriesRoutes(node, client)
    stream = StreamRoutes(node.timeline, Broadcast(node.timeline, status.encoded))
    for part in (
        MetricRoutes(node),
        NodeRoutes(node, status, repeats),
        JobRoutes(node, status, repeats, client),
        ScaleRoutes(node, status),
        ForgetRoutes(node),
        CheckpointRoutes(node, repeats, client),
        ProfileRoutes(node, client),
        EventRoutes(node, block_map),
        series,
        stream,
        DoctorRoutes(node),
        DashboardRoutes(),
        OpenApiRoutes(app, guarded=node.access is not None),
    ):
        app.router.add_routes(part.routes())
    app.cleanup_ctx.extend((series.life, stream.life))
    app.on_shutdown.append(stream.stop)
    return app


def _protocol_log() -> logging.Logger:
    """Where aiohttp tells of what is not HTTP."""
    protocol = log.getChild("protocol")
    protocol.addFilter(PlainRefusals())
    return protocol


@web.middleware
async def _own_pages_alone(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what another site's page could send: whoever submits a job runs code here."""
    origin = request.headers.get("Origin")
    if origin is not None and not is_own(origin, request.scheme, request.host):
        raise AccessDenied(
            "requests from the web pages of others are refused",
            field="Origin",
            limit=f"{request.scheme}://{request.host}, or none",
        )
    return await handler(request)


def is_own(origin: str, scheme: str, host: str) -> bool:
    """Whether a page's origin is what was asked: the dashboard's, served from here.

    A name that was made to point here is its own origin too: that is what the Host check is for.
    """
    return origin.lower() == f"{scheme}://{host}".lower()


@web.middleware
async def _asked_by_address(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a name that was made to point here: loopback is open to the browser too.

    Where a token is needed no page has one.
    """
    host = urlsplit(f"//{request.host}").hostname or ""
    if host not in ("localhost", socket.gethostname().lower()) and not _is_address(host):
        raise AccessDenied(
            "this daemon is not asked by that name",
            field="Host",
            limit="an address, localhost, or its machine's name",
        )
    return await handler(request)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
