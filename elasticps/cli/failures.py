"""What a request to a daemon fails by, as errors that say what a user can do."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TypeVar

import aiohttp
import msgspec

from elasticps.cli.answers import ErrorAnswer, ErrorBody
from elasticps.errors import AccessDenied, ElasticError, PeerUnavailable, UsageError

_BROKEN = "the daemon has ended, or the token was revoked: ask again, or another by --api URL"
_HINT = "is the daemon running? see `systemctl status elasticpsd`, or name another by --api URL"

Answer = TypeVar("Answer")


def _certificate_hint(what: str) -> str:
    if "has expired" in what:
        return "`elasticps certs issue` makes another; the daemon takes it from its file by itself"
    return (
        "--ca names the cluster's authority; the certificate must name the URL's host"
        " (`elasticps certs issue --host`)"
    )


@contextlib.contextmanager
def plain_errors(url: str) -> Iterator[None]:
    """Raise PeerUnavailable for what goes wrong on the way to ``url`` and back."""
    try:
        yield
    except aiohttp.ClientConnectorCertificateError as error:
        raise PeerUnavailable(
            f"the daemon's certificate is not to be trusted: {error.certificate_error}",
            where=url,
            hint=_certificate_hint(str(error.certificate_error)),
        ) from None
    except TimeoutError:
        raise PeerUnavailable("the daemon did not answer in time", where=url, hint=_HINT) from None
    except aiohttp.ClientSSLError as error:
        raise PeerUnavailable(
            f"no TLS with the daemon: {error.os_error.strerror or error.os_error}",
            where=url,
            hint="does its API begin with http://? a cluster without certificates has no https",
        ) from None
    except aiohttp.ClientPayloadError:
        raise PeerUnavailable("the daemon's answer broke off", where=url, hint=_BROKEN) from None
    except (aiohttp.ClientError, OSError) as error:
        raise PeerUnavailable(
            f"the daemon cannot be reached: {_cause(error)}", where=url, hint=_HINT
        ) from None


def _cause(error: Exception) -> str:
    """In the system's words, where it was the system that refused."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(inner, OSError) and (inner.errno or 0) > 0:
        return os.strerror(inner.errno or 0)
    return str(inner) or type(error).__name__


async def check(response: aiohttp.ClientResponse, url: str) -> None:
    """Raise the error that the daemon answered with, if any."""
    if 200 <= response.status < 300:
        return
    body = await response.read()
    try:
        error = msgspec.json.decode(body, type=ErrorAnswer).error
    except msgspec.MsgspecError:
        raise ElasticError(
            f"HTTP {response.status} {response.reason}, not an answer of elasticps",
            where=url,
            hint="does --api name a daemon's HTTP address?",
        ) from None
    raise _error(response.status, error)


def _error(status: int, body: ErrorBody) -> ElasticError:
    kinds: dict[int, type[ElasticError]] = {
        400: UsageError,
        401: AccessDenied,
        403: AccessDenied,
        404: UsageError,
        413: UsageError,
        415: UsageError,
        503: PeerUnavailable,
    }
    return kinds.get(status, ElasticError)(
        body.what, where=body.where, field=body.field, limit=body.limit, hint=body.hint
    )


def decoded(body: bytes, kind: type[Answer], url: str) -> Answer:
    """The answer as a value. Raises ElasticError where it is none of this kind."""
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.MsgspecError as error:
        raise ElasticError(
            f"the answer is not understood: {error}",
            where=url,
            hint="does --api name a daemon of this version of elasticps?",
        ) from None
