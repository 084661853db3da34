"""Steps of large blocks in a thread of its own, while the event loop sends the blocks before.

The loop decides what is stepped, and is told when that is done. Who needs a block's numbers earlier
takes part in what is left of its step and waits for the rest: nobody meets them half made.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from elasticps.server.compute import Share, Shared, first_of

ASIDE, LOOP = -1, 0
"""The numbers of the thread and of the loop's, where a piece is told who works on it."""


def has_cores() -> bool:
    """Is there a core for the thread beside the event loop's?"""
    return len(os.sched_getaffinity(0)) > 1


class StepAside:
    """One step under way. All but ``take_part`` is for the event loop's thread."""

    def __init__(self, share: Share, when_done: Callable[[], None]) -> None:
        self.when_done = when_done
        self._share = share
        self._shared = Shared(share.work, iter(range(share.pieces)))

    def take_part(self, thread: int) -> None:
        self._shared.take_part(thread)

    def finish(self) -> None:
        """Return when the step is made, and its share told. To be called once."""
        self.take_part(LOOP)
        errors = [self._shared.done.get() for _ in range(self._share.pieces)]
        self._share.ended(first_of(errors))


class StepsAside:
    """The thread, started with the first step; it sleeps until there is another."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[StepAside | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def begin(self, share: Share, when_done: Callable[[], None]) -> StepAside:
        """Steps are made in this order. ``when_done`` is called in a turn of the running loop."""
        if self._thread is None:
            loop = asyncio.get_running_loop()
            self._thread = threading.Thread(
                target=self._run, args=(loop,), name="elasticps-step", daemon=True
            )
            self._thread.start()
        step = StepAside(share, when_done)
        self._queue.put(step)
        return step

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        while (step := self._queue.get()) is not None:
            step.take_part(ASIDE)
            with contextlib.suppress(RuntimeError):  # the loop is closed, and nobody waits
                loop.call_soon_threadsafe(step.when_done)
            del step  # which has a gradient's memory

    def close(self) -> None:
        """End the thread. Idempotent."""
        thread, self._thread = self._thread, None
        if thread is not None:
            self._queue.put(None)
            thread.join()
