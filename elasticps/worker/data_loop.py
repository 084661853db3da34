"""The background thread whose event loop carries all of a worker's traffic."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import uvloop

from elasticps.errors import UsageError
from elasticps.wire.spans import Spans

Result = TypeVar("Result")


CANCEL_TIMEOUT_S = 5.0
"""For what is cancelled to end; it has nothing to wait for."""


class DataLoop:
    """An event loop on a thread of its own; the script's thread hands it coroutines.

    ``spans`` gets the script's waits.
    """

    def __init__(self, spans: Spans | None = None) -> None:
        self.spans = spans or Spans()
        self._loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="elasticps-data", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def call(self, coroutine: Coroutine[Any, Any, Result]) -> Result:
        """Run ``coroutine`` there and wait for its result; a Ctrl-C here cancels it there.

        It has ended when this returns or raises: it may use the script's memory until then. Raises
        UsageError once the loop is closed.
        """
        ended = threading.Event()
        try:
            future = self.start(_told(coroutine, ended))
        except UsageError:
            coroutine.close()
            raise
        try:
            return self.result_of(future)
        except BaseException:
            late = future.cancelled() and not ended.wait(CANCEL_TIMEOUT_S)
            if late and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
                coroutine.close()  # cancelled before it began
            raise

    def result_of(self, future: Future[Result]) -> Result:
        """Wait for what was started; a Ctrl-C here cancels it there."""
        began_ns = self.spans.begin()
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
        finally:
            self.spans.end("wait", began_ns)

    def start(self, coroutine: Coroutine[Any, Any, Result]) -> Future[Result]:
        """Run ``coroutine`` there. Raises UsageError once the loop is closed."""
        if self._loop.is_closed():
            coroutine.close()
            raise UsageError("this worker's run is closed", hint="train inside the with-block")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def tell(self, act: Callable[..., None], *arguments: object) -> None:
        """Have ``act`` called there, and do not wait for it."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(act, *arguments)

    def close(self) -> None:
        """Cancel what still runs, and end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        self.call(_cancel_all())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _told(coroutine: Coroutine[Any, Any, Result], ended: threading.Event) -> Result:
    try:
        return await coroutine
    finally:
        ended.set()


async def _cancel_all() -> None:
    current = asyncio.current_task()
    tasks = [task for task in asyncio.all_tasks() if task is not current]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
