"""Refusing a job whose URLs for checkpoints cannot be reached from this machine."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping

import msgspec

from elasticps.checkpoint.reach import Wrong
from elasticps.checkpoint.url import Url, place_of
from elasticps.daemon.output import readable
from elasticps.daemon.process import ProcessGroup
from elasticps.errors import UsageError

LIMIT_S = 8.0
"""Less than the command line waits for an answer."""
MOST_BYTES = 1 << 16


async def check_reachable(places: Mapping[str, str], *, limit_s: float = LIMIT_S) -> None:
    """Raise UsageError, with the reason, for a URL that cannot be used; ``places`` are by field.

    Paths are looked at by the job's workers: only they know which machines have them.
    """
    async with asyncio.TaskGroup() as tasks:
        asked = {
            (field, url): tasks.create_task(_wrong(field, url, limit_s))
            for field, url in places.items()
            if isinstance(place_of(url), Url)
        }
    for (field, url), task in asked.items():
        wrong = task.result()
        if wrong is not None:
            raise UsageError(
                f"{url}: {wrong.what}",
                field=field,
                limit=wrong.limit or "a place that all machines reach",
                hint="each machine's daemon needs the credentials: see docs/checkpoints.md",
            )


async def _wrong(field: str, url: str, limit_s: float) -> Wrong | None:
    argv = (sys.executable, "-m", "elasticps.checkpoint.reach", field, url)
    try:
        group = ProcessGroup.spawn(argv, os.environ, None)
    except OSError as error:
        return Wrong(what=f"no process can be started to look at it: {error.strerror}")
    try:
        async with asyncio.timeout(limit_s):
            said, complaints = await asyncio.gather(_all(group.stdout), _all(group.stderr))
            await group.ended()
        code = group.reap()
    except TimeoutError:
        return Wrong(what=f"no answer within {limit_s:g} s")
    finally:
        group.close()
    if code:
        lines = complaints.decode(errors="replace").split("\n")
        last = next((line for line in reversed(lines) if line.strip()), f"exit code {code}")
        return Wrong(what=f"looking at it failed: {last}")
    return msgspec.json.decode(said, type=Wrong) if said else None


async def _all(pipe: int) -> bytes:
    """What is written until the end, of which the beginning is kept."""
    found = b""
    while True:
        await readable(pipe)
        try:
            some = os.read(pipe, MOST_BYTES)
        except BlockingIOError:
            continue
        if not some:
            return found
        found = (found + some)[:MOST_BYTES]
