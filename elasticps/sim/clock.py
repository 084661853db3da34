"""Made-up time: what happens next, and a trace of what has happened. Times are microseconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any, Protocol

MS = 1000
Act = Callable[..., None]


class Goal(Protocol):
    done: bool


class Clock:
    """Events in order of (time, the order in which they were asked for)."""

    __slots__ = ("_heap", "_sequence", "events", "now", "trace")

    def __init__(self) -> None:
        self.now = 0
        self.events = 0
        self.trace: list[str] = []
        self._heap: list[tuple[int, int, Act, tuple[Any, ...]]] = []
        self._sequence = 0

    def at(self, time: int, act: Act, *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (max(time, self.now), self._sequence, act, args))

    def after(self, delay: int, act: Act, *args: Any) -> None:
        self._sequence += 1
        heappush(self._heap, (self.now + delay, self._sequence, act, args))

    def run(self, goal: Goal) -> None:
        """Let one event after the other happen until ``goal`` is done."""
        heap = self._heap
        while heap and not goal.done:
            self.now, _, act, args = heappop(heap)
            self.events += 1
            act(*args)

    def note(self, what: str) -> None:
        self.trace.append(f"{self.now} {what}")

    @property
    def digest(self) -> str:
        """SHA-256 of the whole trace: two runs with one digest are the same run."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()
