"""Requests read and answers written: names looked up, bodies checked, JSON made."""

from __future__ import annotations

import asyncio
import difflib
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler

from elasticps.core.ids import JobName, NodeId
from elasticps.daemon.http.contract import JSON, Query, operation_of, request_key
from elasticps.daemon.http.decoding import from_json, from_query
from elasticps.daemon.http.refusals import MAX_BODY_BYTES, NotFound, Refused, TooSlow, WrongType
from elasticps.daemon.view import ClusterView, JobView
from elasticps.errors import listed

Body = TypeVar("Body", bound=msgspec.Struct)
Asked = TypeVar("Asked", bound=Query)

BODY_TIMEOUT_S = 10.0
"""How long a body of at most 1 MiB may take to arrive."""
_QUERY = request_key("query", Query)


class _Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that needs none: empty, or ``{}``."""


def as_json(document: object, status: int = 200) -> web.Response:
    """A JSON answer. Numbers that JSON does not have (NaN, infinity) become null."""
    return web.Response(body=msgspec.json.encode(document), status=status, content_type=JSON)


def job_named(view: ClusterView, request: web.Request) -> JobView:
    return job_called(view, JobName(request.match_info["job"]))


def job_called(view: ClusterView, name: JobName) -> JobView:
    """Raises NotFound."""
    job = view.jobs.get(name)
    if job is None or job.spec is None:
        raise _unknown("job", name, view.jobs)
    return job


def gone(name: JobName) -> NotFound:
    """What to raise where a job was forgotten while something was asked of it."""
    return NotFound(f"job {name} is forgotten", field="job", limit="a job that etcd holds")


def node_named(view: ClusterView, request: web.Request) -> NodeId:
    name = NodeId(request.match_info["node"])
    if name not in view.nodes and name not in view.drains:
        raise _unknown("node", name, view.nodes)
    return name


def _unknown(kind: str, name: str, known: Iterable[str]) -> NotFound:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1)
    return NotFound(
        f"there is no {kind} {name}",
        field=kind,
        limit=listed(names) or f"no {kind}s yet",
        hint=f"did you mean {near[0]}?" if near else None,
    )


@web.middleware
async def read_strictly(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse what a declared route does not take: parameters, a body, an encoded one."""
    declared = operation_of(request.match_info.handler)
    if declared is not None:
        if encoding := request.headers.get("Content-Encoding"):
            raise WrongType(
                f"a body that is encoded as {encoding[:40]} is not taken",
                field="Content-Encoding",
                limit="none",
            )
        request[_QUERY] = from_query(request.query.items(), declared.query)
        if declared.body is None and request.body_exists:
            await body_of(request, _Nothing)
    return await handler(request)


def query_of(request: web.Request, query_type: type[Asked]) -> Asked:
    """The request's parameters, as the route declares them."""
    query = request[_QUERY]
    assert isinstance(query, query_type)
    return query


async def body_of(request: web.Request, body_type: type[Body]) -> Body:
    """The request's JSON as ``body_type``; an empty body counts as ``{}``. Raises Refused."""
    content = await content_of(request)
    charset = (request.charset or "utf-8").lower()
    if content and (request.content_type != JSON or charset not in ("utf-8", "utf8")):
        raise WrongType(
            f"a body of type {request.content_type} is not taken", field="Content-Type", limit=JSON
        )
    return from_json(content, body_type)


async def content_of(request: web.Request) -> bytes:
    """The bytes of the body, which is bounded in size and time. Raises Refused."""
    announced = request.content_length or 0
    if announced > MAX_BODY_BYTES:
        raise web.HTTPRequestEntityTooLarge(MAX_BODY_BYTES, announced)
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            return await request.read()
    except TimeoutError:
        raise TooSlow(
            "the body that was announced did not come",
            field="body",
            limit=f"{BODY_TIMEOUT_S:g} s",
        ) from None
    except (HttpProcessingError, web.RequestPayloadError) as error:
        raise Refused(f"the body cannot be read: {error}", field="body") from None
