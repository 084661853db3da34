"""Requests read and answers written: names looked up, bodies checked, JSON made."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from enum import EnumType
from typing import TypeVar

import msgspec
from aiohttp import web

from elasticps.core.ids import JobName, NodeId
from elasticps.daemon.view import ClusterView, JobView
from elasticps.errors import UsageError

Body = TypeVar("Body", bound=msgspec.Struct)

INVALID_CHOICE = re.compile(r"Invalid enum value (?P<word>.*) - at `\$\.(?P<field>\w+)`", re.DOTALL)

WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")


class NotFound(UsageError):
    """What a request names does not exist."""


def as_json(document: object, status: int = 200) -> web.Response:
    """A JSON answer. Numbers that JSON does not have (NaN, infinity) become null."""
    return web.Response(
        body=msgspec.json.encode(document), status=status, content_type="application/json"
    )


def job_named(view: ClusterView, request: web.Request) -> JobView:
    return job_called(view, JobName(request.match_info["job"]))


def job_called(view: ClusterView, name: JobName) -> JobView:
    """Raises NotFound."""
    job = view.jobs.get(name)
    if job is None or job.spec is None:
        raise _unknown("job", name, view.jobs)
    return job


def node_named(view: ClusterView, request: web.Request) -> NodeId:
    name = NodeId(request.match_info["node"])
    if name not in view.nodes and name not in view.drains:
        raise _unknown("node", name, view.nodes)
    return name


def number_in(request: web.Request, field: str, default: int, least: int, most: int) -> int:
    """A whole number of the query. Raises UsageError."""
    text = request.query.get(field)
    if text is None:
        return default
    if not WHOLE_NUMBER.fullmatch(text) or not least <= int(text) <= most:
        raise UsageError(f"{field} of {text}", field=field, limit=f"{least} to {most}")
    return int(text)


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
        raise _refusal(body_type, str(error)) from error
    except RecursionError:
        raise UsageError("the body is nested too deeply", field="body") from None


def _refusal(body_type: type[msgspec.Struct], text: str) -> UsageError:
    """A word that is none of a field's choices is told with the choices, all else as it comes."""
    choices = {field.encode_name: field.type for field in msgspec.structs.fields(body_type)}
    match = INVALID_CHOICE.fullmatch(text)
    if match is None or not isinstance(choices.get(match["field"]), EnumType):
        return UsageError(f"the body is not as it should be: {text}", field="body")
    limit = ", ".join(str(choice.value) for choice in choices[match["field"]])
    return UsageError(f"{match['field']} of {match['word']}", field=match["field"], limit=limit)
