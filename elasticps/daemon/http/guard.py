"""Who may ask what of the API: users by their tokens, other nodes by their certificates.

Where the node has no certificates this is left out, and whoever reaches the API may do all.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from elasticps.daemon.access import NodeAccess
from elasticps.daemon.http.contract import operation_of, request_key
from elasticps.daemon.http.refusals import Unproven
from elasticps.daemon.view import JobView
from elasticps.errors import AccessDenied
from elasticps.security.tls import node_of
from elasticps.security.tokens import Role

log = logging.getLogger(__name__)

OPEN_TO_ALL = ("/healthz", "/readyz", "/")
OPEN_BELOW = "/static/"  # the dashboard's files: they have no data
JOBS = "/api/v1/jobs"
_HINT = "elasticps --token-file FILE or ELASTICPS_TOKEN_FILE; `elasticps token create` makes one"


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, as it has proven."""

    name: str
    role: Role


_CALLER = request_key("caller", Caller)
_ACCESS = request_key("access", NodeAccess)


def guard(access: NodeAccess) -> Middleware:
    """A middleware that lets a request pass to its handler only with the role that it needs."""

    @web.middleware
    async def guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in OPEN_TO_ALL and not request.path.startswith(OPEN_BELOW):
            caller = _caller(access, request)
            _require(caller, request)
            request[_CALLER], request[_ACCESS] = caller, access
        return await handler(request)

    return guarded


def proven_caller(request: web.Request) -> Caller | None:
    """Who asks; None where nothing is to be proven, and all may do all."""
    return request.get(_CALLER)


def owner(request: web.Request) -> str:
    """Whose a job is that this request submits; nobody's where nothing is proven."""
    caller = proven_caller(request)
    return caller.name if caller else ""


def is_still_allowed(request: web.Request) -> bool:
    """Whether a long answer may go on: its token may have been revoked, or expired, meanwhile."""
    access: NodeAccess | None = request.get(_ACCESS)
    if access is None:
        return True
    try:
        _require(_caller(access, request), request)
    except AccessDenied:
        return False
    return True


def require_own(request: web.Request, job: JobView) -> None:
    """Raises AccessDenied when another's job is to be changed by who is no admin."""
    caller = proven_caller(request)
    if caller is None or caller.role is Role.ADMIN:
        return
    if job.spec is None or job.spec.owner != caller.name:
        raise AccessDenied(
            f"job {job.name} is not one that {caller.name} has submitted",
            field="job",
            limit="its owner, or the role admin",
        )


def role_for(request: web.Request) -> Role:
    """What a request needs: what its route declares, and else by its path.

    What is not thought of here is for admins.
    """
    declared = operation_of(request.match_info.handler)
    if declared is not None:
        return declared.role
    method, path = request.method, request.path
    if method in ("GET", "HEAD"):
        return Role.READ
    if method == "POST" and (path == JOBS or path.startswith(f"{JOBS}/")):
        return Role.SUBMIT
    return Role.ADMIN


def _caller(access: NodeAccess, request: web.Request) -> Caller:
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() == "bearer":
        entry = access.tokens.find(token.strip())
        if entry is not None:
            return Caller(name=entry.name, role=entry.role)
        log.warning("peer=%s a token that is not good", request.remote)
        raise Unproven("the token is not good: unknown, revoked or expired", hint=_HINT)
    peer = request.transport.get_extra_info("peercert") if request.transport else None
    node = node_of(peer)
    if node is None:
        raise Unproven("a token is needed", hint=_HINT)
    return Caller(name=f"node:{node}", role=Role.READ)


def _require(caller: Caller, request: web.Request) -> None:
    needed = role_for(request)
    if not caller.role.includes(needed):
        raise AccessDenied(
            f"the token {caller.name} is for {caller.role.value}",
            field="token",
            limit=f"this needs the role {needed.value}",
            hint=f"`elasticps token create --role {needed.value}` makes one",
        )
    if needed is not Role.READ:
        log.info(
            "caller=%s role=%s %s %s", caller.name, caller.role.value, request.method, request.path
        )
