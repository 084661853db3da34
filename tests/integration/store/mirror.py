"""A reader that follows a prefix in its own task and remembers everything that it was given."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager

from elasticps.store import Batch, Changes, KeyValue, Snapshot, Store, watch_prefix
from elasticps.store.watch import watch


class Mirror:
    def __init__(self) -> None:
        self.state: dict[str, KeyValue] = {}
        self.batches: list[Batch] = []
        self._changed = asyncio.Condition()

    @property
    def seen(self) -> list[tuple[int, str]]:
        """Revision and key of every event, as they came."""
        return [
            (event.revision, event.key)
            for batch in self.batches
            if isinstance(batch, Changes)
            for event in batch.events
        ]

    @property
    def snapshots(self) -> list[Snapshot]:
        return [batch for batch in self.batches if isinstance(batch, Snapshot)]

    @property
    def revision(self) -> int:
        """The last batch's."""
        return self.batches[-1].revision

    async def until(self, condition: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(condition)

    async def follow(self, store: Store, prefix: str) -> None:
        async with aclosing(watch_prefix(store, prefix)) as batches:
            async for batch in batches:
                self._apply(batch)
                async with self._changed:
                    self._changed.notify_all()

    def _apply(self, batch: Batch) -> None:
        self.batches.append(batch)
        if isinstance(batch, Snapshot):
            self.state = {item.key: item for item in batch.items}
            return
        for event in batch.events:
            if event.kv is None:
                self.state.pop(event.key)
            else:
                self.state[event.key] = event.kv


@asynccontextmanager
async def mirrored(store: Store, prefix: str) -> AsyncIterator[Mirror]:
    """A mirror that has its first snapshot."""
    mirror = Mirror()
    async with asyncio.TaskGroup() as group:
        following = group.create_task(mirror.follow(store, prefix))
        await mirror.until(lambda: bool(mirror.batches))
        yield mirror
        following.cancel()


async def assert_exact(mirror: Mirror, store: Store, prefix: str) -> None:
    """The mirror has had every event since its first snapshot, each once, in etcd's order."""
    seen = mirror.seen
    first = mirror.snapshots[0].revision + 1
    assert seen == await history(store, prefix, first, seen[-1][0])


async def history(store: Store, prefix: str, first: int, last: int) -> list[tuple[int, str]]:
    """etcd's own record of the revisions ``first`` to ``last``, the measure for every mirror."""
    events: list[tuple[int, str]] = []
    async with aclosing(watch(store, prefix, first)) as batches:
        async for changes in batches:
            events += [(event.revision, event.key) for event in changes.events]
            if changes.revision >= last:
                return [event for event in events if event[0] <= last]
    raise AssertionError("a watch does not end")
