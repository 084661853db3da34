"""Requests about jobs: submit, look, cancel, and follow what workers print."""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
import time
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import web

from elasticps.checkpoint.url import Url, place_of
from elasticps.core.ids import JobKey, JobName
from elasticps.core.records import JobSpec, NodeRecord, encode
from elasticps.daemon.access import asking
from elasticps.daemon.http.answers import JobRow, JobsPage, LogLine
from elasticps.daemon.http.body import as_json, body_of, gone, job_named, query_of
from elasticps.daemon.http.contract import Query, operation, routes_of
from elasticps.daemon.http.guard import owner, require_own
from elasticps.daemon.http.line_stream import write_lines
from elasticps.daemon.http.meant import job_meant, meaning
from elasticps.daemon.http.pages import JobsQuery
from elasticps.daemon.http.repeats import Done, Repeats
from elasticps.daemon.http.status import ClusterStatus
from elasticps.daemon.http.submission import JobBody, check_submission
from elasticps.daemon.log_files import LinesMissed
from elasticps.daemon.node import Node
from elasticps.daemon.process_group import fresh_identity
from elasticps.daemon.reachable import check_reachable
from elasticps.errors import UsageError
from elasticps.security.tokens import Role
from elasticps.store import Put

log = logging.getLogger(__name__)

NDJSON = "application/x-ndjson"
PENDING_LINES = 1000
FOLLOW_TIMEOUT = aiohttp.ClientTimeout(total=None, sock_connect=2.0)
RECHECK_S = 0.3
NUMBER = re.compile(r"[1-9][0-9]{0,6}")
"""Of a job without a name: with the longest stem it is still a name that may be asked for."""


class LogsQuery(Query, frozen=True):
    follow: Annotated[bool, msgspec.Meta(description="Go on until the job has ended.")] = False
    local: Annotated[
        bool, msgspec.Meta(description="Of the workers of the node that is asked alone.")
    ] = False


class JobRoutes:
    def __init__(
        self, node: Node, status: ClusterStatus, repeats: Repeats, client: aiohttp.ClientSession
    ) -> None:
        self._node = node
        self._view = node.view
        self._status = status
        self._repeats = repeats
        self._client = client

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "GET",
        "/api/v1/jobs",
        "The jobs, the oldest first",
        role=Role.READ,
        query=JobsQuery,
        answer=JobsPage,
    )
    async def jobs(self, request: web.Request) -> web.Response:
        return as_json(await self._status.jobs(query_of(request, JobsQuery)))

    @operation("GET", "/api/v1/jobs/{job}", "One job", role=Role.READ, answer=JobRow)
    async def job(self, request: web.Request) -> web.Response:
        return as_json(await self._status.job(job_named(self._view, request)))

    @operation(
        "POST",
        "/api/v1/jobs",
        "Submit a job",
        role=Role.SUBMIT,
        body=JobBody,
        answer=JobRow,
        status=201,
        keyed=True,
    )
    async def submit(self, request: web.Request) -> web.Response:
        """The script must lie at the same path on every node. Without a name the job gets its."""
        done = await self._repeats.earlier(request)
        if done is None:
            body = await body_of(request, JobBody)
            check_submission(body)
            await self._node.making.check(body)
            self._check_free(body.checkpoint_dir)
            await check_reachable({"checkpoint_dir": body.checkpoint_dir, "resume": body.resume})
            done = await self._create(request, body)
        # Whoever asks for the job next asks here.
        await self._node.until(lambda: self._view.revision >= done.revision)
        # Its key is the revision of the write, which its answer was kept with.
        return done.response(201, msgspec.json.decode(done.answer) | {"key": done.revision})

    def _check_free(self, directory: str) -> None:
        """Raise UsageError for a URL that an active job has: no store locks it, as a disk does."""
        place = place_of(directory)
        if not isinstance(place, Url):
            return
        for job in self._view.active_jobs:
            if job.spec is not None and place_of(job.spec.checkpoint_dir) == place:
                raise UsageError(
                    f"job {job.name} has its checkpoints in {directory}",
                    field="checkpoint_dir",
                    limit="one job at a time",
                    hint="choose another place, or wait until that job has ended",
                )

    async def _create(self, request: web.Request, body: JobBody) -> Done:
        """Write the spec under the asked name, or under the script's with the next number."""
        stem = re.sub(r"[^a-z0-9]+", "-", Path(body.argv[0]).stem.lower()).strip("-")[:32] or "job"
        first = next_number(stem, self._view.jobs)
        taken = [job.spec.identity for job in self._view.active_jobs if job.spec is not None]
        for number in itertools.count(first):
            name = JobName(body.name or f"{stem}-{number}")
            spec = _spec(name, body, owner(request), taken)
            put = Put(self._node.keys.job_spec(name), encode(spec))
            done = None
            if body.name or name not in self._view.jobs:
                answer = self._status.submitted(spec)
                done = await self._repeats.write(request, put, answer, fresh=True)
            if done is not None:
                return done
            if body.name:
                raise UsageError(f"a job named {name} exists", field="name", limit="a new name")
        raise AssertionError("numbers do not end")

    @operation(
        "POST",
        "/api/v1/jobs/{job}/cancel",
        "Stop a job's workers and forget its blocks",
        role=Role.SUBMIT,
        answer=JobRow,
        status=202,
    )
    async def cancel(self, request: web.Request) -> web.Response:
        """A submitter may cancel its own jobs alone. Asking twice does no harm."""
        job = job_named(self._view, request)
        require_own(request, job)
        keys, name = self._node.keys, job.name
        put = Put(keys.job_cancel(name), b"{}")
        if await self._node.store.put_given(put, (keys.same_job(name, job.key),)) is None:
            raise gone(name)
        return as_json(await self._status.job(job), status=202)

    @operation(
        "GET",
        "/api/v1/jobs/{job}/logs",
        "What a job's workers have written, a JSON document a line",
        role=Role.READ,
        query=LogsQuery,
        answer=LogLine,
        content_type=NDJSON,
    )
    async def logs(self, request: web.Request) -> web.StreamResponse:
        job = await job_meant(self._node, request)
        name, key = job.name, job.key
        asked = query_of(request, LogsQuery)
        response = web.StreamResponse(headers={"Content-Type": NDJSON})
        await response.prepare(request)
        lines: asyncio.Queue[bytes] = asyncio.Queue(PENDING_LINES)
        gather = self._local_lines if asked.local else self._all_lines
        source = asyncio.create_task(gather(name, key, asked.follow, lines))
        await write_lines(request, response, lines, source)
        return response

    def _is_active(self, name: JobName, key: JobKey) -> bool:
        """Whether that job, and no later one of its name, goes on."""
        job = self._view.jobs.get(name)
        return job is not None and job.key == key and job.active

    async def _local_lines(
        self, name: JobName, key: JobKey, follow: bool, lines: asyncio.Queue[bytes]
    ) -> None:
        """This node's workers' lines, oldest first."""
        seen = 0
        while True:
            living = any(life.job == key for life in self._node.workers.lives.values())
            busy = living or self._is_active(name, key)
            for line in self._node.logs.since(seen):
                if isinstance(line, LinesMissed):
                    await lines.put(self._left_out(line.count))
                    continue
                seen = line.sequence
                job, _, worker = line.source.partition(".")
                if job == str(key) and line.stream != "daemon":
                    row = LogLine(
                        node=self._node.name,
                        worker=worker,
                        stream=line.stream,
                        text=line.text,
                        unix_s=line.time_unix,
                        rank=self._node.workers.rank_of(worker),
                    )
                    await lines.put(msgspec.json.encode(row) + b"\n")
            if not follow or not busy:
                return
            await asyncio.sleep(0.05)

    def _left_out(self, count: int) -> bytes:
        """Says that the reader was too slow, in place of what it missed."""
        text = f"... {count} lines left out; this node's log files have them"
        row = LogLine(node=self._node.name, worker="", stream="stderr", text=text)
        return msgspec.json.encode(row) + b"\n"

    async def _all_lines(
        self, name: JobName, key: JobKey, follow: bool, lines: asyncio.Queue[bytes]
    ) -> None:
        """Every node's lines, of nodes that join later too."""
        followed: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while True:
                for record in self._view.nodes.values():
                    if record.http not in followed:
                        followed[record.http] = tasks.create_task(
                            self._node_lines(record, name, key, follow, lines)
                        )
                if not follow or not self._is_active(name, key):
                    return
                await asyncio.sleep(RECHECK_S)

    async def _node_lines(
        self,
        record: NodeRecord,
        name: JobName,
        key: JobKey,
        follow: bool,
        lines: asyncio.Queue[bytes],
    ) -> None:
        if record.node == self._node.name:
            await self._local_lines(name, key, follow, lines)
            return
        url = f"{record.http}/api/v1/jobs/{name}/logs?local=1&follow={int(follow)}"
        try:
            proof = asking(self._node.access, record)
            async with self._client.get(
                url, timeout=FOLLOW_TIMEOUT, headers=meaning(key), raise_for_status=True, **proof
            ) as response:
                async for line in response.content:
                    await lines.put(line)
        except (aiohttp.ClientError, TimeoutError) as error:
            log.info("node=%s its lines end here: %s", record.node, error)


def next_number(stem: str, names: Iterable[str]) -> int:
    """One more than the highest of the jobs that are called ``<stem>-<number>``; 1 of none."""
    numbers = (name.removeprefix(f"{stem}-") for name in names if name.startswith(f"{stem}-"))
    return max((int(text) for text in numbers if NUMBER.fullmatch(text)), default=0) + 1


def _spec(name: JobName, body: JobBody, owned_by: str, taken: Collection[str]) -> JobSpec:
    fields = msgspec.structs.asdict(body) | {"name": name, "owner": owned_by}
    identity = fresh_identity(taken)
    return JobSpec(**fields, identity=identity, submitted_unix=time.time())
