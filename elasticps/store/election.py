"""Leadership: one key, held by whoever creates it under a lease; its revision is the fence."""

from __future__ import annotations

import logging
from contextlib import aclosing

from elasticps.errors import StoreUnavailable, UsageError, WatchCompacted
from elasticps.store.client import Store
from elasticps.store.lease import Lease
from elasticps.store.operations import Compare, Delete, Fence, KeyValue
from elasticps.store.watch import watch

_log = logging.getLogger(__name__)


class Election:
    """An election for ``key``. Holds nothing: the winner's lease holds the key."""

    def __init__(self, store: Store, key: str) -> None:
        self.key = key
        self._store = store

    async def campaign(self, lease: Lease, value: bytes) -> Fence:
        """Wait until the key is ours and return the fence of this leadership.

        ``value`` and the lease together name the candidate: with them it recognises a win whose
        answer was lost. Goes on while etcd is away, for as long as the lease is held.

        Raises LeaseLost, or UsageError when the lease already leads with another value.
        """
        while True:
            lease.raise_if_lost()
            try:
                revision = await self._store.create(self.key, value, lease.id)
                if revision is not None:
                    lease.raise_if_lost()
                    return Fence(self.key, revision)
                await lease.while_held(self._vacant(lease))
            except StoreUnavailable as error:
                _log.warning("campaign goes on without etcd key=%s error=%s", self.key, error)
            except WatchCompacted:
                _log.info("campaign looks again after a compaction key=%s", self.key)

    async def resign(self, fence: Fence) -> None:
        """Delete the key if it is still of this leadership; a later leader's is left alone."""
        await self._store.txn(
            [Compare.created(fence.key, fence.create_revision)], [Delete(fence.key)]
        )

    async def current(self) -> KeyValue | None:
        """The leader's key, if there is a leader."""
        return await self._store.get(self.key)

    async def _vacant(self, lease: Lease) -> None:
        """Return once the key is absent."""
        listing = await self._store.list(self.key)
        holder = next((item for item in listing.items if item.key == self.key), None)
        if holder is None:
            return
        if holder.lease == lease.id:
            raise UsageError(
                "this lease already leads with another value", where=self.key, field="value"
            )
        async with aclosing(watch(self._store, self.key, listing.revision + 1)) as batches:
            async for changes in batches:
                if any(event.key == self.key and event.kv is None for event in changes.events):
                    return
