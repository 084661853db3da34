"""Hearing of it, while pushes wait for all workers, that the set of workers has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from elasticps.core.commands import Attend
from elasticps.core.ids import Generation
from elasticps.worker.client import Client

Result = TypeVar("Result")


class Attendance:
    """One request at the ledger for each generation, answered when that generation is over."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._generation = Generation(0)
        self._over: asyncio.Task[Any] | None = None

    async def unless_regenerated(
        self, generation: Generation, work: Coroutine[Any, Any, Result]
    ) -> Result | None:
        """The work's result; None, and the work cancelled, when the generation is over first.

        Raises what the work or the ledger raises.
        """
        over = self._watch(generation)
        working = asyncio.create_task(work)
        try:
            await asyncio.wait({over, working}, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            over.result()
            return None
        finally:
            await _cancelled(working)

    async def until_regenerated(self, generation: Generation) -> None:
        """Wait until the generation is over. Raises JobFailed for who is no member any more."""
        over = self._watch(generation)
        await asyncio.wait({over})
        over.result()

    async def aclose(self) -> None:
        if self._over is not None:
            await _cancelled(self._over)

    def _watch(self, generation: Generation) -> asyncio.Task[Any]:
        if self._over is None or generation != self._generation:
            if self._over is not None:
                self._over.cancel()
            self._generation = generation
            self._over = asyncio.create_task(
                self._client.ledger(lambda worker: Attend(worker, generation))
            )
        return self._over


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """End a task; what it raised is looked at by whoever waited for it."""
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()
