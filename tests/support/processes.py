"""Questions about real processes, and waiting for a condition."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

from elasticps.testing.waiting import open_fds as open_fds


def runs(pid: int) -> bool:
    """Whether the process exists and is no zombie (an orphan's zombie is init's business)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def zombie_children() -> list[int]:
    """Children of this process that ended and that nobody has reaped."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(parent) == os.getpid() and state == "Z":
            found.append(int(entry.name))
    return found


async def until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """Wait for the condition without blocking the loop; fails the test after the limit."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not true within {timeout_s:g} s"
        await asyncio.sleep(0.01)


def wait_until(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    """The same for a test without a loop."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not true within {timeout_s:g} s"
        time.sleep(0.01)
