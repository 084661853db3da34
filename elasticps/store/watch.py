"""Watches that lose nothing and repeat nothing, whatever happens to streams and endpoints.

A stream that breaks is opened again from the last delivered event's revision + 1: never from a
header's or a progress answer's revision, which run ahead of the events that are still to come.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aetcd import rpc
from grpc import aio

from elasticps.errors import StoreError, StoreUnavailable, WatchCompacted
from elasticps.store.client import Store
from elasticps.store.endpoints import Endpoints, Link, Metadata
from elasticps.store.faults import Fault, words_of
from elasticps.store.operations import KeyValue, key_value, prefix_range

_log = logging.getLogger(__name__)
_QUIET_S = 2.0
"""After this long without a word the server is asked whether it is alive."""
_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_PROGRESS = rpc.WatchRequest(progress_request=rpc.WatchProgressRequest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A change of one key at ``revision``: its new state, or None when it was deleted."""

    key: str
    revision: int
    kv: KeyValue | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The whole state under the prefix as of ``revision``. It replaces what was known before."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """Events in order. The events of one revision are never split between two of these.

    ``revision`` is the last event's.
    """

    events: tuple[Event, ...]
    revision: int


Batch = Snapshot | Changes


async def watch_prefix(store: Store, prefix: str) -> AsyncGenerator[Batch, None]:
    """Mirror the keys under ``prefix``: a Snapshot, then Changes, for as long as one iterates.

    After a compaction that overtook the watch comes another Snapshot. While etcd is away nothing
    comes. Leave it by cancellation or within ``contextlib.aclosing``.

    Raises StoreError when etcd refuses the watch (permissions, say), StoreRolledBack when it was
    restored to an earlier state.
    """
    while True:
        try:
            listing = await store.list(prefix)
        except StoreUnavailable as error:
            _log.warning("watch waits for etcd prefix=%s error=%s", prefix, error)
            continue
        yield Snapshot(items=listing.items, revision=listing.revision)
        try:
            async with aclosing(watch(store, prefix, listing.revision + 1)) as batches:
                async for changes in batches:
                    yield changes
        except WatchCompacted as error:
            _log.warning("watch lists again prefix=%s error=%s", prefix, error)


async def watch(store: Store, prefix: str, start_revision: int) -> AsyncGenerator[Changes, None]:
    """The changes under ``prefix`` from ``start_revision`` on, each exactly once, in order.

    Raises WatchCompacted when a revision that is still to be delivered was compacted away,
    StoreRolledBack when etcd's history has become shorter than what was delivered, and StoreError
    when etcd refuses the watch.
    """
    next_revision = start_revision
    pause_s = _FIRST_PAUSE_S
    while True:
        try:
            async with _Stream(store.endpoints, prefix, next_revision) as stream:
                while events := await stream.events():
                    pause_s = _FIRST_PAUSE_S
                    next_revision = events[-1].revision + 1
                    yield Changes(events=events, revision=events[-1].revision)
        except (_Broken, StoreUnavailable) as error:
            _log.info("watch resumes prefix=%s revision=%d: %s", prefix, next_revision, error)
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Broken(Exception):
    """The stream is of no more use; another may be."""


class _Stream:
    """One watch on one stream to one endpoint, until it breaks."""

    def __init__(self, endpoints: Endpoints, prefix: str, start_revision: int) -> None:
        self._endpoints = endpoints
        self._prefix = prefix
        self._start_revision = start_revision
        self._answer_s = endpoints.config.request_timeout_s
        self._link: Link
        self._metadata: Metadata
        self._call: Any = None

    async def __aenter__(self) -> Self:
        first, end = prefix_range(self._prefix)
        await self._read_first(first, end)
        deadline = time.monotonic() + self._answer_s
        self._link = await self._endpoints.connected(deadline)
        self._metadata = await self._endpoints.metadata(deadline)
        create = rpc.WatchCreateRequest(
            key=first, range_end=end, start_revision=self._start_revision, fragment=True
        )
        self._call = self._link.watch.Watch(metadata=self._metadata, wait_for_ready=True)
        try:
            await self._open(rpc.WatchRequest(create_request=create))
        except BaseException:
            self._call.cancel()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call.cancel()

    async def events(self) -> tuple[Event, ...]:
        """The next events, of whole revisions, at least one."""
        events: list[Event] = []
        while True:
            response = await self._next()
            events += [_event(message) for message in response.events]
            # etcd cuts a large response anywhere, also within a revision.
            if events and not response.fragment:
                return tuple(events)

    async def _read_first(self, first: bytes, end: bytes) -> None:
        """A watch would wait in silence where a read tells what is wrong.

        A refused watch does not tell an expired login from a missing right, and one from a
        revision that etcd has not reached (again, after an old backup was restored) never begins.
        """
        await self._endpoints.call(
            lambda link: link.kv.Range,
            rpc.RangeRequest(key=first, range_end=end, limit=1, keys_only=True),
            repeatable=True,
        )

    async def _open(self, request: Any) -> None:
        try:
            async with asyncio.timeout(self._answer_s):
                await self._call.write(request)
                response = await self._call.read()
        except TimeoutError:
            raise self._left("did not open the watch") from None
        except aio.AioRpcError as error:
            raise self._failed(error) from error
        self._check(response)

    async def _next(self) -> Any:
        """The next response. An endpoint that does not even answer a question is left."""
        reading = asyncio.ensure_future(self._call.read())
        try:
            await asyncio.wait({reading}, timeout=_QUIET_S)
            if not reading.done():
                async with asyncio.timeout(self._answer_s):
                    await self._call.write(_PROGRESS)
                    await asyncio.wait({reading})
            return self._check(reading.result())
        except TimeoutError:
            raise self._left("went silent") from None
        except aio.AioRpcError as error:
            raise self._failed(error) from error
        finally:
            reading.cancel()
            await asyncio.wait({reading})

    def _check(self, response: Any) -> Any:
        if not isinstance(response, rpc.WatchResponse):
            raise self._left("ended the stream")
        # A member that lags tells a lower revision here; it was a read that asked them all.
        self._endpoints.history.take(response.header, seen=0)
        if response.compact_revision:
            raise WatchCompacted(
                f"revision {self._start_revision} is compacted",
                where=self._prefix,
                limit=f"revision {response.compact_revision} or later",
            )
        if response.canceled:
            raise StoreError(f"etcd cancelled the watch: {response.cancel_reason}")
        return response

    def _left(self, what: str) -> _Broken:
        self._endpoints.leave(self._link)
        return _Broken(f"{self._link.target} {what}")

    def _failed(self, error: aio.AioRpcError) -> _Broken:
        fault: Fault = self._endpoints.judge(self._link, error, self._metadata)
        return _Broken(f"{self._link.target}: {words_of(error)} ({fault.name})")


def _event(message: Any) -> Event:
    deleted = message.type == message.DELETE
    kv = key_value(message.kv)
    return Event(key=kv.key, revision=kv.mod_revision, kv=None if deleted else kv)
