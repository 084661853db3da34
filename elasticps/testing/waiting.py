"""Waiting for a condition, and what this process holds open: how a test sees what has happened."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 30.0
"""How long a test waits for what must happen; it is only ever used up by a failing test."""


async def eventually(condition: Callable[[], bool]) -> None:
    """Wait for the condition without blocking the loop. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110 - nobody sets an event for it
            await asyncio.sleep(0.001)


def open_fds() -> frozenset[tuple[str, str]]:
    """Each descriptor of this process with what it is open on.

    A test compares these, not their number: gRPC's channels of earlier tests close theirs whenever
    the garbage collector finds them.
    """
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the listing's own is closed by now
            found.append((entry.name, str(entry.readlink())))
    return frozenset(found)
