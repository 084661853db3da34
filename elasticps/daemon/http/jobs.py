"""Requests about jobs: submit, look, cancel, and follow what workers print."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import secrets
import time
from collections.abc import Iterable
from pathlib import Path

import aiohttp
import msgspec
from aiohttp import web

from elasticps.core.blocks import DEFAULT_BLOCK_BYTES, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES
from elasticps.core.consistency import Guarantees, check_guarantees, in_range
from elasticps.core.ids import JobName
from elasticps.core.records import JobSpec, NodeRecord, encode
from elasticps.daemon.access import asking
from elasticps.daemon.chosen import check_chosen
from elasticps.daemon.http.body import as_json, body_of, job_named
from elasticps.daemon.http.guard import owner, require_own
from elasticps.daemon.http.status import ClusterStatus
from elasticps.daemon.log_files import LinesMissed
from elasticps.daemon.node import Node
from elasticps.errors import UsageError

log = logging.getLogger(__name__)

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
MAX_WORKERS = 10_000
PENDING_LINES = 1000
FOLLOW_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
RECHECK_S = 0.3
IDENTITY_BYTES = 16


class JobBody(Guarantees, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /api/v1/jobs``. Numbers out of range are refused with their field's name."""

    argv: tuple[str, ...]
    cwd: str
    name: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    start_workers: int = 1
    max_workers: int = MAX_WORKERS
    block_bytes: int = DEFAULT_BLOCK_BYTES
    audit: bool = False


class JobRoutes:
    def __init__(self, node: Node, status: ClusterStatus, client: aiohttp.ClientSession) -> None:
        self._node = node
        self._view = node.view
        self._status = status
        self._client = client

    def routes(self) -> Iterable[web.RouteDef]:
        return (
            web.get("/api/v1/jobs", self.jobs),
            web.post("/api/v1/jobs", self.submit),
            web.get("/api/v1/jobs/{job}", self.job),
            web.post("/api/v1/jobs/{job}/cancel", self.cancel),
            web.get("/api/v1/jobs/{job}/logs", self.logs),
        )

    async def jobs(self, _: web.Request) -> web.Response:
        return as_json({"jobs": (await self._status.cluster())["jobs"]})

    async def job(self, request: web.Request) -> web.Response:
        return as_json(await self._status.job(job_named(self._view, request)))

    async def submit(self, request: web.Request) -> web.Response:
        body = await body_of(request, JobBody)
        _check(body)
        name = await self._create(body, owner(request))
        await self._node.until(lambda: name in self._view.jobs and self._view.jobs[name].spec)
        return as_json(await self._status.job(self._view.jobs[name]), status=201)

    async def _create(self, body: JobBody, owned_by: str) -> JobName:
        """Write the spec under the asked name, or under the script's with the next free number."""
        stem = re.sub(r"[^a-z0-9]+", "-", Path(body.argv[0]).stem.lower()).strip("-")[:32] or "job"
        number = 1
        while True:
            name = JobName(body.name or f"{stem}-{number}")
            spec = _spec(name, body, owned_by)
            if await self._node.store.create(self._node.keys.job_spec(name), encode(spec)):
                return name
            if body.name:
                raise UsageError(f"a job named {name} exists", field="name")
            number += 1

    async def cancel(self, request: web.Request) -> web.Response:
        job = job_named(self._view, request)
        require_own(request, job)
        await self._node.store.put(self._node.keys.job_cancel(job.name), b"{}")
        return as_json(await self._status.job(job), status=202)

    async def logs(self, request: web.Request) -> web.StreamResponse:
        """Lines of the job's workers as NDJSON; with ``follow=1`` until the job has ended."""
        job = job_named(self._view, request)
        follow = request.query.get("follow") == "1"
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        lines: asyncio.Queue[bytes] = asyncio.Queue(PENDING_LINES)
        if request.query.get("local") == "1":
            source = asyncio.create_task(self._local_lines(job.name, follow, lines))
        else:
            source = asyncio.create_task(self._all_lines(job.name, follow, lines))
        try:
            await _pump(lines, source, response)
        finally:
            source.cancel()
            await asyncio.wait({source})
        await response.write_eof()
        return response

    async def _local_lines(self, job: JobName, follow: bool, lines: asyncio.Queue[bytes]) -> None:
        """This node's workers' lines, oldest first."""
        seen = 0
        while True:
            active = job in self._view.jobs and self._view.jobs[job].active
            busy = active or any(life.job_name == job for life in self._node.workers.lives.values())
            for line in self._node.logs.since(seen):
                if isinstance(line, LinesMissed):
                    await lines.put(self._left_out(line.count))
                    continue
                seen = line.sequence
                source, _, number = line.source.partition(".")
                if source == job and line.stream != "daemon":
                    row = {
                        "node": self._node.name,
                        "worker": f"{self._node.name}.{number}",
                        "stream": line.stream,
                        "text": line.text,
                        "unix_s": line.time_unix,
                    }
                    await lines.put(msgspec.json.encode(row) + b"\n")
            if not follow or not busy:
                return
            await asyncio.sleep(0.05)

    def _left_out(self, count: int) -> bytes:
        """Says that the reader was too slow, in place of what it missed."""
        text = f"... {count} lines left out; this node's log files have them"
        row = {"node": self._node.name, "worker": "", "stream": "stderr", "text": text}
        return msgspec.json.encode(row) + b"\n"

    async def _all_lines(self, job: JobName, follow: bool, lines: asyncio.Queue[bytes]) -> None:
        """Every node's lines, of nodes that join later too."""
        followed: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                for record in self._view.nodes.values():
                    if record.http not in followed:
                        followed[record.http] = tasks.create_task(
                            self._node_lines(record, job, follow, lines)
                        )
                if not follow or not self._view.jobs[job].active:
                    return
                await asyncio.sleep(RECHECK_S)

    async def _node_lines(
        self, record: NodeRecord, job: JobName, follow: bool, lines: asyncio.Queue[bytes]
    ) -> None:
        if record.node == self._node.name:
            await self._local_lines(job, follow, lines)
            return
        url = f"{record.http}/api/v1/jobs/{job}/logs?local=1&follow={int(follow)}"
        try:
            proof = asking(self._node.access, record)
            async with self._client.get(url, timeout=FOLLOW_TIMEOUT, **proof) as response:
                async for line in response.content:
                    await lines.put(line)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("node=%s its lines end here: %s", record.node, error)


async def _pump(
    lines: asyncio.Queue[bytes], source: asyncio.Task[None], response: web.StreamResponse
) -> None:
    """Write lines as they come, until the source has ended and all are written."""
    while True:
        getting = asyncio.create_task(lines.get())
        await asyncio.wait({getting, source}, return_when=asyncio.FIRST_COMPLETED)
        if getting.done():
            await response.write(getting.result())
            continue
        getting.cancel()
        while not lines.empty():
            await response.write(lines.get_nowait())
        source.result()
        return


def _spec(name: JobName, body: JobBody, owned_by: str) -> JobSpec:
    fields = msgspec.structs.asdict(body) | {"name": name, "owner": owned_by}
    identity = secrets.token_hex(IDENTITY_BYTES)
    return JobSpec(**fields, identity=identity, submitted_unix=time.time())


def _check(body: JobBody) -> None:
    """Raises UsageError that names the field and its limit."""
    if body.name is not None and not NAME.fullmatch(body.name):
        raise UsageError(f"{body.name!r} is no job name", field="name", limit=NAME.pattern)
    _check_command(body)
    in_range("start_workers", body.start_workers, 1, MAX_WORKERS)
    in_range("max_workers", body.max_workers, body.start_workers, MAX_WORKERS)
    check_guarantees(body, body.start_workers)
    in_range("block_bytes", body.block_bytes, MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)
    check_chosen(body)


def _check_command(body: JobBody) -> None:
    """What no process could be started with, on this node at least."""
    if not body.argv or any("\0" in part for part in body.argv):
        raise UsageError("argv is the script and its arguments, without NUL", field="argv")
    folder = Path(body.cwd)
    script = folder / body.argv[0]
    # Of os.path, which says False where pathlib raises: a name too long, a NUL.
    if not folder.is_absolute() or not os.path.isdir(folder):  # noqa: PTH112
        raise UsageError(
            f"{body.cwd!r} is no folder of this node", field="cwd", limit="an absolute path"
        )
    if not os.path.isfile(script):  # noqa: PTH113
        raise UsageError(f"there is no script {script} on this node", field="argv")
    for key, value in body.env.items():
        if not key or "=" in key or "\0" in key + value:
            raise UsageError(f"{key!r} is no environment variable", field="env")
