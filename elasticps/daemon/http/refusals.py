"""What the API refuses, by status, and the one JSON shape that every error is answered in."""

from __future__ import annotations

import logging
from typing import ClassVar

import msgspec
from aiohttp import web
from aiohttp.http import HttpProcessingError
from aiohttp.typedefs import Handler

from elasticps.errors import AccessDenied, ElasticError, StoreError, StoreUnavailable, UsageError

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 1 << 20
DOCUMENT_PATH = "/api/v1/openapi.json"


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """``what`` is one sentence, ``where`` what it is about, ``field`` the input that is wrong,
    ``limit`` the bound that it broke, ``hint`` the next step."""

    what: str
    where: str | None
    field: str | None
    limit: str | None
    hint: str | None


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Every error of the API."""

    error: ErrorBody


class Refused(UsageError):
    """What the request asks for cannot be; ``status`` is that of its answer."""

    status: ClassVar[int] = 400


class NotFound(Refused):
    """What a request names does not exist."""

    status = 404


class TooSlow(Refused):
    """The body did not come in time: it was announced longer than it is, or nobody sends it."""

    status = 408


class Conflict(Refused):
    """It contradicts an earlier request."""

    status = 409


class WrongType(Refused):
    """The body is encoded, or of a type, that is not taken."""

    status = 415


class TooManyReaders(Refused):
    """The daemon has as many streams as it wants to serve."""

    status = 503


class Unproven(AccessDenied):
    """No token, or one that is not good: 401, where other refusals are 403."""


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        answer = _answer(error.status, _worded(error, request))
        if "Allow" in error.headers:
            answer.headers["Allow"] = error.headers["Allow"]
        return answer
    except ElasticError as error:
        answer = _answer(_status(error), error)
        if isinstance(error, Unproven):
            answer.headers["WWW-Authenticate"] = "Bearer"
        return answer
    except Exception:
        log.exception("%s %s has failed", request.method, request.path)
        hint = "its log tells more; please report it"
        return _answer(500, ElasticError("the daemon has failed at this request", hint=hint))


def _status(error: ElasticError) -> int:
    match error:
        case Refused():
            return error.status
        case UsageError():
            return 400
        case Unproven():
            return 401
        case AccessDenied():
            return 403
        case StoreUnavailable():
            return 503
        case StoreError():
            return 409
    return 500


def _worded(error: web.HTTPException, request: web.Request) -> ElasticError:
    """What aiohttp refuses by itself, with the field and the limit."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        what = f"{request.method} is not for this path"
        return UsageError(what, field="method", limit=allowed)
    if error.status == 404:
        hint = f"GET {DOCUMENT_PATH} lists what there is"
        return UsageError("there is no such path", field="path", hint=hint)
    if error.status == 413:
        limit = f"{MAX_BODY_BYTES} bytes"
        return UsageError("the body is too large", field="body", limit=limit)
    return UsageError(error.reason)


def _answer(status: int, error: ElasticError) -> web.Response:
    body = ErrorBody(
        what=error.what,
        where=error.where,
        field=error.field,
        limit=error.limit,
        hint=error.hint,
    )
    return web.Response(
        body=msgspec.json.encode(ErrorAnswer(error=body)),
        status=status,
        content_type="application/json",
    )


class PlainRefusals(logging.Filter):
    """For aiohttp's own log: what is not HTTP is the peer's fault, in one line."""

    def filter(self, record: logging.LogRecord) -> bool:
        fault = record.exc_info[1] if record.exc_info else None
        if isinstance(fault, HttpProcessingError):
            words = " ".join(str(fault).split())[:200]
            record.msg, record.args = f"{record.getMessage()}: {words}", ()
            record.exc_info, record.exc_text = None, None
            record.levelno, record.levelname = logging.WARNING, "WARNING"
        return True
