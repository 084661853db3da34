"""Which job a node asks another about: by its key, for its name may have been given to a later one.

The key is in a header, which a daemon that does not know it passes over.
"""

from __future__ import annotations

import asyncio
import contextlib
import re

from aiohttp import web

from elasticps.core.ids import JobKey
from elasticps.daemon.http.body import gone, job_named
from elasticps.daemon.http.refusals import Refused
from elasticps.daemon.node import Node
from elasticps.daemon.view import JobView

HEADER = "Elasticps-Job-Key"
KEY = re.compile(r"[1-9][0-9]{0,18}")
HEARD_WITHIN_S = 0.5


def meaning(key: JobKey) -> dict[str, str]:
    """The header of a request about this job and no other of its name."""
    return {HEADER: str(key)}


async def job_meant(node: Node, request: web.Request) -> JobView:
    """The job that the path names; where another node asks, the one that it means.

    What that one has heard of this one hears of too, a moment later. Raises NotFound.
    """
    text = request.headers.get(HEADER)
    if text is None:
        return job_named(node.view, request)
    if not KEY.fullmatch(text):
        raise Refused("a job's key is a number", field=HEADER, limit="1 to 19 digits")
    key = JobKey(int(text))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(HEARD_WITHIN_S):
            await node.until(lambda: node.view.revision >= key)
    job = job_named(node.view, request)
    if job.key != key:
        raise gone(job.name)
    return job
