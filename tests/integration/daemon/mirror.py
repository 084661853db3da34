"""A view that follows a real etcd, as a daemon's does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from elasticps.daemon.view import ClusterView
from elasticps.store import Keys, Store, watch_prefix

WAIT_S = 60.0


class Mirrored:
    """``changed`` is told of every change of ``view``."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.keys = Keys("test")
        self.view = ClusterView(self.keys)
        self.changed = asyncio.Condition()

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(WAIT_S), self.changed:
            await self.changed.wait_for(lambda: bool(condition()))

    async def follow(self) -> None:
        async with aclosing(watch_prefix(self.store, self.keys.root)) as batches:
            async for batch in batches:
                self.view.apply(batch)
                async with self.changed:
                    self.changed.notify_all()


@asynccontextmanager
async def mirrored(store: Store) -> AsyncIterator[Mirrored]:
    cluster = Mirrored(store)
    following = asyncio.create_task(cluster.follow())
    try:
        yield cluster
    finally:
        following.cancel()
        await asyncio.wait({following})
