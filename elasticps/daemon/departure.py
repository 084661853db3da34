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
from elasticps.store import Compare, Delete, Store

log = logging.getLogger(__name__)

RETRY_S = 0.3
RESTART = 75
"""The exit code of a daemon that wants to be started again; the unit knows it."""


class Departure:
    """``wait`` returns the exit code when it is time to go.

    0: nothing was left behind. 1: blocks or workers of active jobs were. RESTART: nothing was, and
    the next life is to begin.
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
        self._node_key = view.keys.node(node)
        self._drain_key = view.keys.drain(node)
        self._node = node
        self.drain_timeout_s = drain_timeout_s
        self._is_empty = is_empty
        self._asked = asyncio.Event()
        self._hurried = asyncio.Event()

    @property
    def asked(self) -> bool:
        """Was it told to leave, by a signal?"""
        return self._asked.is_set()

    def ask(self) -> None:
        """The first time: drain, then leave. The second: leave at once."""
        (self._hurried if self._asked.is_set() else self._asked).set()

    def ask_on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ask)

    async def wait(self, joined: Callable[[], bool]) -> int:
        """Wait for a drain to end or a signal to come. ``joined``: was this node ever registered?

        While it was not, what the cluster has of its id is another's.
        """
        drained = asyncio.create_task(self._drained())
        asked = asyncio.create_task(self._asked.wait())
        try:
            await asyncio.wait({drained, asked}, return_when=asyncio.FIRST_COMPLETED)
            if drained.done() and not self._asked.is_set():
                mark = self._view.drains.get(self._node)
                return RESTART if mark is not None and mark.restart else 0
            if drained.done() or not joined() or self._is_empty():
                return 0
            if await self._drain(drained):
                return 0
            log.error("leaving with blocks or workers of active jobs still here")
            return 1
        finally:
            asked.cancel()
            drained.cancel()

    async def unmark(self) -> None:
        """Take the drain mark off, unless an operator wants it to stay: the next life may serve.

        While this id is registered, by another daemon perhaps, its mark is left alone.
        """
        try:
            mark = await self._store.get(self._drain_key)
            if mark is None or decode(mark.value, DrainRecord, mark.key).stay:
                return
            unchanged = Compare.modified(mark.key, mark.mod_revision)
            absent = Compare.absent(self._node_key)
            await self._store.txn([unchanged, absent], [Delete(mark.key)])
        except StoreError as error:
            log.warning("the drain mark stays: %s", error)

    async def _drained(self) -> None:
        """Return when this node is marked to drain, is to leave, and nothing is left on it."""

        def drained() -> bool:
            drain = self._view.drains.get(self._node)
            leaves = drain is not None and (self._asked.is_set() or not drain.stay)
            return leaves and self._is_empty()

        async with self._changed:
            await self._changed.wait_for(drained)

    async def _drain(self, drained: asyncio.Task[None]) -> bool:
        """Have everything moved away; False when time was up, or the second signal came, first."""
        log.info("draining for at most %g s; ask again to leave at once", self.drain_timeout_s)
        marking = asyncio.create_task(self._mark())
        hurried = asyncio.create_task(self._hurried.wait())
        try:
            await asyncio.wait(
                {drained, hurried},
                timeout=self.drain_timeout_s,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            marking.cancel()
            hurried.cancel()
        return drained.done()

    async def _mark(self) -> None:
        """Mark this node to drain; an operator's mark stands."""
        while True:
            try:
                await self._store.create(self._drain_key, encode(DrainRecord()))
                return
            except StoreError as error:
                log.warning("the drain waits for etcd: %s", error)
                await asyncio.sleep(RETRY_S)
