"""How far another node's CLOCK_MONOTONIC is ahead of this one's.

Cristian's algorithm (1989, "Probabilistic clock synchronization"): the other's time is put in the
middle of the shortest round trip of several; the error is at most half of that.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

import msgspec

ROUND_TRIPS = 12


class ClockReading(msgspec.Struct, frozen=True, kw_only=True):
    """A node's CLOCK_MONOTONIC as it answers."""

    monotonic_ns: int


async def clock_ahead(read: Callable[[], Awaitable[int]]) -> tuple[int, int]:
    """By how many nanoseconds, and the largest error of that. Raises what ``read`` raises."""
    best: tuple[int, int] | None = None
    for _ in range(ROUND_TRIPS):
        sent = time.monotonic_ns()
        theirs = await read()
        came = time.monotonic_ns()
        trip = came - sent
        if best is None or trip < 2 * best[1]:
            best = theirs - (sent + came) // 2, (trip + 1) // 2
    assert best is not None
    return best
