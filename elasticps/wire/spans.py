"""The recorder of spans: a bounded ring, off until somebody asks for a profile."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from itertools import count

from elasticps.core.spans import Span

SpanRow = tuple[str, int, int, int | None, int, str, int]


class Spans:
    """Several threads may add; off, ``begin`` is one look at an attribute.

    ``began = spans.begin()`` before what is to be recorded, ``spans.end("push", began)`` after it.
    It goes off by itself when its time is up, should nobody stop it.
    """

    __slots__ = ("_added", "_clock", "_rows", "_until_ns", "on")

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self.on = False
        self._clock = clock
        self._rows: deque[SpanRow] = deque()
        self._added = count()
        self._until_ns = 0

    def begin(self) -> int:
        """Now, in nanoseconds; 0 when nothing is recorded."""
        return self._clock() if self.on else 0

    def end(
        self,
        name: str,
        began_ns: int,
        *,
        block: int | None = None,
        nbytes: int = 0,
        via: str = "",
        round_: int = 0,
    ) -> None:
        """Record what began at ``began_ns``; nothing where that is 0, or recording has ended."""
        if began_ns and self.on:
            self.add(name, began_ns, self._clock(), block, nbytes, via, round_)

    def add(
        self,
        name: str,
        began_ns: int,
        ended_ns: int,
        block: int | None = None,
        nbytes: int = 0,
        via: str = "",
        round_: int = 0,
    ) -> None:
        """Record a span whose end is known."""
        if ended_ns > self._until_ns:
            self.on = False
            return
        next(self._added)
        self._rows.append((name, began_ns, ended_ns - began_ns, block, nbytes, via, round_))

    def start(self, most: int, seconds: float) -> None:
        """Record from now on, the newest ``most``, for ``seconds`` at the longest."""
        self._rows = deque(maxlen=most)
        self._added = count()
        self._until_ns = self._clock() + int(seconds * 1e9)
        self.on = True

    def stop(self) -> tuple[list[Span], int]:
        """End the recording: the spans, and how many older ones there was no room for."""
        self.on = False
        rows, self._rows = self._rows, deque()
        added, self._added = next(self._added), count()
        return [Span(*row) for row in rows], added - len(rows)
