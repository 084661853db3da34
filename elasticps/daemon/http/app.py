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
from elasticps.daemon.http.body import NotFound, as_json
from elasticps.daemon.http.checkpoints import CheckpointRoutes
from elasticps.daemon.http.dashboard import DashboardRoutes
from elasticps.daemon.http.events import EventRoutes
from elasticps.daemon.http.guard import Unproven, guard
from elasticps.daemon.http.jobs import JobRoutes
from elasticps.daemon.http.nodes import NodeRoutes
from elasticps.daemon.http.series import SeriesRoutes
from elasticps.daemon.http.status import ClusterStatus
from elasticps.daemon.http.stream import Broadcast, StreamRoutes, TooManyReaders
from elasticps.daemon.node import Node
from elasticps.errors import AccessDenied, ElasticError, StoreError, StoreUnavailable, UsageError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
SHUTDOWN_S = 1.0


@asynccontextmanager
async def serve_http(node: Node) -> AsyncIterator[str]:
    """Serve the API at the configured address while in the block; gives the URL it has.

    Raises UsageError when the port is taken.
    """
    host, port = node.config.http
    async with aiohttp.ClientSession() as client:
        runner = web.AppRunner(_app(node, client), access_log=None, shutdown_timeout=SHUTDOWN_S)
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


def _app(node: Node, client: aiohttp.ClientSession) -> web.Application:
    proven = guard(node.access) if node.access else _asked_by_address
    app = web.Application(
        client_max_size=MAX_BODY_BYTES, middlewares=[errors_as_json, _own_pages_alone, proven]
    )
    block_map = BlockMap(node.view, node.timeline)
    status = ClusterStatus(node, client, block_map)
    app.router.add_get("/healthz", _healthy)
    app.router.add_routes(NodeRoutes(node, status).routes())
    app.router.add_routes(JobRoutes(node, status, client).routes())
    app.router.add_routes(CheckpointRoutes(node).routes())
    app.router.add_routes(DashboardRoutes().routes())
    app.router.add_routes(EventRoutes(node, block_map).routes())
    series = SeriesRoutes(node, client)
    app.router.add_routes(series.routes())
    stream = StreamRoutes(node.timeline, Broadcast(node.timeline, status.encoded))
    app.router.add_routes(stream.routes())
    app.cleanup_ctx.extend((series.life, stream.life))
    app.on_shutdown.append(stream.stop)
    return app


async def _healthy(_: web.Request) -> web.Response:
    return as_json({"ok": True})


@web.middleware
async def _own_pages_alone(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what another site's page could send: whoever submits a job runs code here."""
    origin = request.headers.get("Origin")
    if origin is not None and not is_own(origin, request.scheme, request.host):
        raise web.HTTPForbidden(reason="requests from web pages of others are refused")
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
        raise web.HTTPForbidden(reason="this daemon is asked by address or by its machine's name")
    return await handler(request)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What is refused, told as the API tells it."""
    try:
        return await handler(request)
    except NotFound as error:
        return _error(404, error)
    except UsageError as error:
        return _error(400, error)
    except Unproven as error:
        answer = _error(401, error)
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer
    except AccessDenied as error:
        return _error(403, error)
    except (StoreUnavailable, TooManyReaders) as error:
        return _error(503, error)
    except StoreError as error:
        return _error(409, error)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, ElasticError(error.reason))


def _error(status: int, error: ElasticError) -> web.Response:
    fields = {key: getattr(error, key) for key in ("what", "where", "field", "limit", "hint")}
    return as_json({"error": fields}, status=status)
