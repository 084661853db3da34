"""Requests read and answers written: names looked up, bodies checked, JSON made."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import TypeVar

import msgspec
from aiohttp import web

from elasticps.core.ids import JobName, NodeId
from elasticps.daemon.view import ClusterView, JobView
from elasticps.errors import UsageError

Body = TypeVar("Body", bound=msgspec.Struct)


class NotFound(UsageError):
    """What a request names does not exist."""


def as_json(document: object, status: int = 200) -> web.Response:
    """A JSON answer. Numbers that JSON does not have (NaN, infinity) become null."""
    return web.Response(
        body=msgspec.json.encode(document), status=status, content_type="application/json"
    )


def job_named(view: ClusterView, request: web.Request) -> JobView:
    name = JobName(request.match_info["job"])
    job = view.jobs.get(name)
    if job is None or job.spec is None:
        raise _unknown("job", name, view.jobs)
    return job


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
        limit=", ".join(names) or f"no {kind}s yet",
        hint=f"did you mean {near[0]}?" if near else None,
    )


async def body_of(request: web.Request, body_type: type[Body]) -> Body:
    """The request's JSON as ``body_type``; an empty body counts as ``{}``. Raises UsageError."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=body_type)
    except msgspec.MsgspecError as error:
        raise UsageError(f"the body is not as it should be: {error}", field="body") from error
    except RecursionError:
        raise UsageError("the body is nested too deeply", field="body") from None
