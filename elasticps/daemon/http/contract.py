"""One declaration a route: it registers the route, guards it, reads its query, and documents it.

::

    class EventRoutes:
        def routes(self) -> Iterable[web.RouteDef]:
            return routes_of(self)

        @operation("GET", "/api/v1/events", "The timeline, oldest first",
                   role=Role.READ, query=EventsQuery, answer=Events)
        async def events(self, request: web.Request) -> web.Response:
            query = query_of(request, EventsQuery)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from elasticps.security.tokens import Role

_ATTRIBUTE = "elasticps_operation"
JSON = "application/json"
EVENTS = "text/event-stream"

Handle = TypeVar("Handle", bound=Callable[..., Awaitable[web.StreamResponse]])


class Query(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The parameters of a query string: a subclass a route. This one takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a route is for, what it takes, and what it answers.

    ``answer`` may be several structs: one of them. ``content_type`` is the answer's; of one that
    is not JSON ``answer`` is a line, or None. ``keyed``: it heeds an Idempotency-Key. ``names``:
    its query or body names something that may not exist.
    """

    method: str
    path: str
    summary: str
    role: Role
    query: type[Query]
    body: type[msgspec.Struct] | None
    answer: tuple[type, ...]
    status: int
    content_type: str
    keyed: bool
    names: bool


def operation(
    method: str,
    path: str,
    summary: str,
    *,
    role: Role,
    answer: type | tuple[type, ...] = (),
    status: int = 200,
    query: type[Query] = Query,
    body: type[msgspec.Struct] | None = None,
    content_type: str = JSON,
    keyed: bool = False,
    names: bool = False,
) -> Callable[[Handle], Handle]:
    """Declare the handler of a route; ``routes_of`` registers it. See ``Operation``."""
    declared = Operation(
        method=method,
        path=path,
        summary=summary,
        role=role,
        query=query,
        body=body,
        answer=answer if isinstance(answer, tuple) else (answer,),
        status=status,
        content_type=content_type,
        keyed=keyed,
        names=names,
    )

    def declare(handle: Handle) -> Handle:
        setattr(handle, _ATTRIBUTE, declared)
        return handle

    return declare


def request_key(name: str, kind: type) -> Any:
    """The key under which something is kept with a request; aiohttp before 3.14 takes a text."""
    made = getattr(web, "RequestKey", None)
    return made(name, kind) if made else name


def operation_of(handle: object) -> Operation | None:
    """What is declared of a handler; None: nothing."""
    found = getattr(handle, _ATTRIBUTE, None)
    return found if isinstance(found, Operation) else None


def routes_of(routes: object) -> Iterator[web.RouteDef]:
    """The declared methods of an object, in the order of its class."""
    for name, function in vars(type(routes)).items():
        declared = operation_of(function)
        if declared is not None:
            handle = getattr(routes, name)
            if declared.method == "GET":
                yield web.get(declared.path, handle)  # answers HEAD too
            else:
                yield web.route(declared.method, declared.path, handle)
