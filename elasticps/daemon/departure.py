"""How a node leaves: asked by signal or by a drain, once nothing is left on it or time is up."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from elasticps.core.ids import NodeId
from elasticps.core.records import DrainRecord, decode, encode
from elasticps.daemon.view import ClusterView
from elasticps.errors import StoreError
from elasticps.store import Store

log = logging.getLogger(__name__)


class Departure:
    """``wait`` returns the exit code when it is time to go.

    0: nothing was left behind. 1: blocks or workers of active jobs were.
    """

    def __init__(
        self,
        store: Store,
        view: ClusterView,
        changed: asyncio.Condition,
        node: NodeId,
        drain_timeout_s: float,
        is_empty: Callable[[], bool],
    ) -> None:
        self._store = store
        self._view = view
        self._changed = changed
        self._drain_key = view.keys.drain(node)
        self._node = node
        self._drain_timeout_s = drain_timeout_s
        self._is_empty = is_empty
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()

    def ask(self) -> None:
        """The first time: drain, then leave. The second: leave at once."""
        (self._hurried if self._asked.is_set() else self._asked).set()

    def ask_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)

    async def wait(self, member: Callable[[], bool]) -> int:
        """Wait for a drain to end or a signal to come. ``member``: is the node registered?"""
        drained = asyncio.create_task(self._drained())
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait({drained, asked}, return_when=asyncio.FIRST_COMPLETED)
            if drained.done() or not member() or self._is_empty():
                return 0
            return await self._drain(drained)
        finally:
            asked.cancel()
            drained.cancel()

    async def unmark(self) -> None:
        """Take the drain mark off, unless an operator wants it to stay: the next life may serve."""
        try:
            mark = await self._store.get(self._drain_key)
            if mark is not None and not decode(mark.value, DrainRecord, mark.key).stay:
                await self._store.delete(self._drain_key)
        except StoreError as error:
            log.warning("the drain mark stays: %s", error)

    async def _drained(self) -> None:
        """Return when this node is marked to drain and leave, and nothing is left on it."""

        def drained() -> bool:
            drain = self._view.drains.get(self._node)
            return drain is not None and not drain.stay and self._is_empty()

        async with self._changed:
            await self._changed.wait_for(drained)

    async def _drain(self, drained: asyncio.Task[None]) -> int:
        log.info("draining for at most %g s; ask again to leave at once", self._drain_timeout_s)
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await self._store.put(self._drain_key, encode(DrainRecord()))
            await asyncio.wait(
                {drained, hurried},
                timeout=self._drain_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        except StoreError as error:
            log.error("leaving without draining: %s", error)
        finally:
            hurried.cancel()
        if drained.done():
            return 0
        log.error("leaving with blocks or workers of active jobs still here")
        return 1
