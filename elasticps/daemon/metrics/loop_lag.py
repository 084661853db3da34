"""How late the event loop is, as the loop itself finds out: by timers that it was to call."""

from __future__ import annotations

import asyncio
import time
from collections import deque

from elasticps.daemon.metrics.totals import Buckets

PERIOD_S = 0.1
REMEMBERED_S = 60.0
BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopLag:
    """``start`` on the loop to be measured; ``stop`` ends it."""

    def __init__(self) -> None:
        self.seen = Buckets(BOUNDS_S)
        self._peaks: deque[tuple[float, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PERIOD_S, self._called, loop, time.monotonic() + PERIOD_S)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def longest(self, now_s: float) -> float:
        """The longest lag of the last minute, in seconds; ``now_s`` is monotonic."""
        while self._peaks and now_s - self._peaks[0][0] > REMEMBERED_S:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0.0

    def _called(self, loop: asyncio.AbstractEventLoop, due_s: float) -> None:
        now_s = time.monotonic()  # uvloop's own time stands still within one turn
        self.took(max(0.0, now_s - due_s), now_s)
        self._timer = loop.call_later(PERIOD_S, self._called, loop, now_s + PERIOD_S)

    def took(self, lag_s: float, now_s: float) -> None:
        """Count one lag. Of the peaks only those stay that no later one exceeds."""
        self.seen.observe(lag_s)
        while self._peaks and self._peaks[-1][1] <= lag_s:
            self._peaks.pop()
        self._peaks.append((now_s, lag_s))
        self.longest(now_s)
