"""An answer of lines that come while it is read: written until their source or the reader ends."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from aiohttp import web

from elasticps.daemon.http.guard import is_still_allowed

CHECK_S = 1.0
"""How often it is looked whether the reader is still there, and still allowed to read."""


async def write_lines(
    request: web.Request,
    response: web.StreamResponse,
    lines: asyncio.Queue[bytes],
    source: asyncio.Task[None],
) -> None:
    """Write all ``lines`` until ``source`` has ended; what it raises is raised.

    A reader that leaves, also where no line comes for long, is no fault. The connection of one
    whose token was revoked is cut, so that it does not take the end for that of the lines.
    ``source`` has ended when this returns.
    """
    writing = asyncio.create_task(_write(response, lines, source))
    leaving = asyncio.create_task(_leaves(request))
    try:
        await asyncio.wait({writing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if writing.done():
            writing.result()
        elif request.transport is not None:
            request.transport.abort()
    finally:
        ending = {source, writing, leaving}
        for task in ending:
            task.cancel()
        await asyncio.wait(ending)


async def _write(
    response: web.StreamResponse, lines: asyncio.Queue[bytes], source: asyncio.Task[None]
) -> None:
    with suppress(ConnectionError):  # the reader has left
        while not source.done() or not lines.empty():
            getting = asyncio.create_task(lines.get())
            try:
                await asyncio.wait({getting, source}, return_when=asyncio.FIRST_COMPLETED)
                if getting.done():
                    await response.write(getting.result())
            finally:
                getting.cancel()
        await response.write_eof()
    if source.done():
        source.result()


async def _leaves(request: web.Request) -> None:
    """Return when the reader is gone, or may not read any more."""
    while request.transport is not None and not request.transport.is_closing():
        if not is_still_allowed(request):
            return
        await asyncio.sleep(CHECK_S)
