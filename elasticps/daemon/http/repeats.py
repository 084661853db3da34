"""Requests that come again: what carries a key has its effect once, whichever daemon is asked.

The key's record is written in the same transaction as what was asked for, so that there is no
moment in which one is there without the other, whoever dies. It goes after a day, with its lease.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
from aiohttp import web

from elasticps.core.records import decode, encode
from elasticps.daemon.http.body import content_of
from elasticps.daemon.http.guard import owner
from elasticps.daemon.http.refusals import Conflict, Refused
from elasticps.errors import StoreUnavailable
from elasticps.store import (
    Compare,
    Get,
    Keys,
    KeyValue,
    Put,
    Store,
    TxnResult,
    grant_unkept,
    revoke,
)

HEADER = "Idempotency-Key"
REPEATED = "Idempotency-Replayed"
"""A header of the answers to requests that had had their effect before."""
KEY = re.compile(r"[!-~]{1,128}")
KEPT_S = 24 * 3600


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A key's record: the SHA-256 of the request that it came with, and that one's answer."""

    request: str
    answer: msgspec.Raw


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """What a request has done: the answer's JSON, and the revision of the write."""

    answer: msgspec.Raw
    revision: int
    repeated: bool

    def response(self, status: int, document: object = None) -> web.Response:
        """``document`` in place of the answer that was kept."""
        headers = {REPEATED: "true"} if self.repeated else {}
        body = msgspec.json.encode(self.answer if document is None else document)
        return web.Response(
            body=body, status=status, headers=headers, content_type="application/json"
        )


class Repeats:
    """The keys of requests in etcd."""

    def __init__(self, store: Store, keys: Keys) -> None:
        self._store = store
        self._keys = keys

    async def earlier(self, request: web.Request) -> Done | None:
        """What the same request has done before; None: it is the first, or has no key.

        Raises Conflict when the key came with another request, Refused for a key that is none.
        """
        path = self._path(request)
        found = await self._store.get(path) if path else None
        return _judged(found, await _fingerprint(request)) if found else None

    async def write(
        self,
        request: web.Request,
        put: Put,
        answer: msgspec.Struct,
        *,
        fresh: bool = False,
        given: Sequence[Compare] = (),
    ) -> Done | None:
        """Put, and keep ``answer`` under the request's key; an earlier one's is given instead.

        None: there is such a key in etcd already, where it has to be ``fresh``, or a condition of
        ``given`` does not hold. Raises as ``earlier``.
        """
        encoded = msgspec.Raw(encode(answer))
        path = self._path(request)
        if path is None:
            revision = await self._put(put, fresh, given)
            return Done(answer=encoded, revision=revision, repeated=False) if revision else None
        fingerprint = await _fingerprint(request)
        lease = await grant_unkept(self._store, KEPT_S)
        record = Put(path, encode(Kept(request=fingerprint, answer=encoded)), lease)
        compares = [*([Compare.absent(put.key)] if fresh else []), *given]
        result = await self._write_both(record, put, compares)
        if result.succeeded:
            return Done(answer=encoded, revision=result.revision, repeated=False)
        found = result.responses[0]
        if not isinstance(found, KeyValue) or found.lease != lease:
            await revoke(self._store, lease)
        return _judged(found, fingerprint) if isinstance(found, KeyValue) else None

    async def _put(self, put: Put, fresh: bool, given: Sequence[Compare]) -> int | None:
        if fresh:
            return await self._store.create(put.key, put.value, given=given)
        return await self._store.put_given(put, given)

    async def _write_both(self, record: Put, put: Put, given: Sequence[Compare]) -> TxnResult:
        """A lost answer is asked for again: if the first has taken effect, its record is found."""
        compares = [Compare.absent(record.key), *given]
        then, otherwise = [put, record], [Get(record.key)]
        try:
            return await self._store.txn(compares, then, otherwise)
        except StoreUnavailable:
            return await self._store.txn(compares, then, otherwise)

    def _path(self, request: web.Request) -> str | None:
        """The record's key in etcd: each user has keys of their own."""
        given = request.headers.getall(HEADER, [])
        if not given:
            return None
        if len(given) > 1 or not KEY.fullmatch(given[0]):
            raise Refused(
                "the key of a request is one word", field=HEADER, limit="1 to 128 visible letters"
            )
        return self._keys.request(_digest(owner(request), given[0]))


async def _fingerprint(request: web.Request) -> str:
    """Of method, path and body as they came."""
    return _digest(request.method, request.path, await content_of(request))


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part.encode(errors="surrogatepass") if isinstance(part, str) else part
        digest.update(len(content).to_bytes(8) + content)
    return digest.hexdigest()


def _judged(found: KeyValue, fingerprint: str) -> Done:
    kept = decode(found.value, Kept, found.key)
    if kept.request != fingerprint:
        raise Conflict(
            "this key came with another request before",
            field=HEADER,
            limit="one request a key",
            hint="send the same request again, or this one with a key of its own",
        )
    return Done(answer=kept.answer, revision=found.create_revision, repeated=True)
