"""The store: etcd's keys read and written, one method an act, each bounded in time."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from aetcd import rpc

from elasticps.errors import (
    FenceLost,
    StoreError,
    StoreRolledBack,
    StoreUnavailable,
    WatchCompacted,
)
from elasticps.store.config import StoreConfig
from elasticps.store.endpoints import Endpoints
from elasticps.store.operations import (
    Compare,
    Delete,
    Fence,
    Get,
    KeyValue,
    Listing,
    Operation,
    Put,
    ServerStatus,
    Target,
    TxnResult,
    delete_request,
    key_bytes,
    key_value,
    prefix_range,
    put_request,
    txn_request,
    txn_result,
)

_PAGE_KEYS = 500
_LISTING_ATTEMPTS = 3


class Store:
    """A client of one etcd cluster: ``async with Store(config) as store``.

    Entering sends nothing, so it succeeds while etcd is away. Every method raises
    StoreUnavailable when no endpoint answers within ``config.request_timeout_s``: a write may then
    have taken effect, or may still, and is not sent twice behind the caller's back. Other failures
    are StoreErrors with etcd's words. After an answer by which etcd has gone back in its history,
    every method raises StoreRolledBack. Finish all calls and watches before leaving the scope.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.endpoints = Endpoints(config)

    async def __aenter__(self) -> Self:
        self.endpoints.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.endpoints.aclose()

    async def get(self, key: str) -> KeyValue | None:
        answer = await self._range(rpc.RangeRequest(key=key_bytes(key)))
        return key_value(answer.kvs[0]) if answer.kvs else None

    async def list(self, prefix: str) -> Listing:
        """All keys that begin with ``prefix``, sorted, read page by page at one revision."""
        for attempt in range(1, _LISTING_ATTEMPTS + 1):
            try:
                return await self._list(prefix)
            except WatchCompacted:
                # A compaction overtook the pages that were left: begin at a newer revision.
                if attempt == _LISTING_ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def put(self, key: str, value: bytes, lease: int | None = None) -> int:
        """Write a key and return the revision of the write. ``lease`` is a live lease's id.

        Raises LeaseLost when etcd does not know the lease, StoreError for a value over 1 MiB.
        """
        request = put_request(Put(key, value, lease))
        answer = await self.endpoints.call(lambda link: link.kv.Put, request)
        revision: int = answer.header.revision
        return revision

    async def delete(self, key: str) -> bool:
        """Delete a key; False when there was none."""
        return await self._delete(Delete(key)) > 0

    async def delete_prefix(self, prefix: str) -> int:
        """Delete all keys that begin with ``prefix`` and return how many there were."""
        return await self._delete(Delete(prefix, prefix=True))

    async def txn(
        self,
        compares: Sequence[Compare],
        then: Sequence[Operation],
        otherwise: Sequence[Operation] = (),
    ) -> TxnResult:
        """Do ``then`` when all ``compares`` hold, else ``otherwise``, as one atomic step."""
        request = txn_request(tuple(compares), tuple(then), tuple(otherwise))
        return txn_result(await self.endpoints.call(lambda link: link.kv.Txn, request))

    async def create(
        self,
        key: str,
        value: bytes,
        lease: int | None = None,
        *,
        given: Sequence[Compare] = (),
    ) -> int | None:
        """Write a key that is absent; its create revision, or None when it exists already.

        None too when a condition of ``given`` does not hold. A lost answer is asked for again: a
        key with our value and lease is our own. Under a lease, which no one else can write with,
        that holds for earlier calls of this method too.
        """
        compares = (Compare.absent(key), *given)
        return await self._write_if(compares, Put(key, value, lease), trust_lease=bool(lease))

    async def replace(
        self, key: str, value: bytes, expected_mod_revision: int, lease: int | None = None
    ) -> int | None:
        """Write a key that was last modified at ``expected_mod_revision``.

        Returns the new mod revision, or None when the key has been modified since. A lost answer is
        asked for again, as in ``create``.
        """
        compare = Compare.modified(key, expected_mod_revision)
        return await self._write_if((compare,), Put(key, value, lease), trust_lease=False)

    async def put_given(self, put: Put, given: Sequence[Compare]) -> int | None:
        """Write a key where all of ``given`` hold; the revision of the write, else None.

        Raises as ``put``.
        """
        result = await self.txn(given, [put])
        return result.revision if result.succeeded else None

    async def fenced(
        self,
        fence: Fence,
        operations: Sequence[Put | Delete],
        compares: Sequence[Compare] = (),
    ) -> int:
        """Write as the winner of an election; returns the revision of the write.

        Raises FenceLost when another has been elected since (or nobody), and a plain StoreError
        when the fence holds but one of ``compares`` does not: then nothing is written, and the
        caller's view of those keys is old.
        """
        elected = Compare.created(fence.key, fence.create_revision)
        result = await self.txn([elected, *compares], operations, [Get(fence.key)])
        if result.succeeded:
            return result.revision
        holder = result.responses[0]
        if isinstance(holder, KeyValue) and holder.create_revision == fence.create_revision:
            keys = ", ".join(compare.key for compare in compares)
            raise StoreError("a key of a fenced write has changed meanwhile", where=keys)
        raise FenceLost(
            "the write is refused: its leader is not the leader any more",
            where=fence.key,
            limit=f"create revision {fence.create_revision}",
        )

    async def status(self) -> ServerStatus:
        """What the current endpoint says of itself."""
        answer = await self.endpoints.call(
            lambda link: link.maintenance.Status,
            rpc.StatusRequest(),
            repeatable=True,
            linearizable=False,
        )
        return ServerStatus(
            version=answer.version,
            leader=answer.leader,
            revision=answer.header.revision,
            db_size=answer.dbSize,
            db_size_in_use=answer.dbSizeInUse,
            errors=tuple(answer.errors),
        )

    async def rolled_back(self) -> StoreRolledBack:
        """Wait until etcd has gone back in its history; the error that every method raises then."""
        await self.endpoints.history.broken.wait()
        return self.endpoints.history.error()

    async def _range(self, request: Any) -> Any:
        return await self.endpoints.call(lambda link: link.kv.Range, request, repeatable=True)

    async def _list(self, prefix: str) -> Listing:
        first, end = prefix_range(prefix)
        items: list[KeyValue] = []
        revision = 0
        while True:
            answer = await self._range(
                rpc.RangeRequest(key=first, range_end=end, limit=_PAGE_KEYS, revision=revision)
            )
            revision = revision or answer.header.revision
            items += [key_value(message) for message in answer.kvs]
            if not answer.more:
                return Listing(items=tuple(items), revision=revision)
            first = answer.kvs[-1].key + b"\0"

    async def _delete(self, delete: Delete) -> int:
        request = delete_request(delete)
        answer = await self.endpoints.call(lambda link: link.kv.DeleteRange, request)
        deleted: int = answer.deleted
        return deleted

    async def _write_if(
        self, compares: Sequence[Compare], put: Put, *, trust_lease: bool
    ) -> int | None:
        """Put when all ``compares`` hold; the revision that wrote our value, or None.

        Sending it twice is safe: the first one, of the key, fails once the first has taken effect.
        """
        recognise = trust_lease
        try:
            result = await self.txn(compares, [put], [Get(put.key)])
        except StoreUnavailable:
            recognise = True
            result = await self.txn(compares, [put], [Get(put.key)])
        if result.succeeded:
            return result.revision
        found = result.responses[0]
        if not (recognise and isinstance(found, KeyValue)):
            return None
        if (found.value, found.lease) != (put.value, put.lease or 0):
            return None
        created = compares[0].target is Target.CREATED
        return found.create_revision if created else found.mod_revision
