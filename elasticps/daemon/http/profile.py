"""Requests about where a job's time goes: some steps recorded on all nodes, as one trace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Annotated, Any

import aiohttp
import msgspec
from aiohttp import web

from elasticps.core.consistency import Consistency, documented, in_range
from elasticps.core.ids import JobKey
from elasticps.core.records import JobSpec, NodeRecord
from elasticps.core.spans import MAX_SPANS, MAX_STEPS, MAX_WAIT_S, NodeSpans, ProcessSpans
from elasticps.core.step_profile import StepProfile, in_the_steps, step_profile
from elasticps.core.trace import TraceEvent, trace_events
from elasticps.daemon.access import asking
from elasticps.daemon.clocks import ClockReading, clock_ahead
from elasticps.daemon.http.body import as_json, body_of, job_named, query_of
from elasticps.daemon.http.contract import JSON, Query, operation, routes_of
from elasticps.daemon.http.guard import require_own
from elasticps.daemon.http.refusals import Conflict
from elasticps.daemon.node import Node
from elasticps.daemon.view import JobView
from elasticps.errors import ElasticError, UsageError
from elasticps.security.tokens import Role

log = logging.getLogger(__name__)

CLOCK_TIMEOUT = aiohttp.ClientTimeout(total=2.0)
ANSWER_S = 15.0
"""What a node may take beyond the steps themselves."""


class ProfileBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``steps`` of each worker are recorded; ``wait_s``: for them at the longest."""

    steps: Annotated[int, documented(1, MAX_STEPS)] = 5
    wait_s: Annotated[int, documented(1, int(MAX_WAIT_S))] = 60


class SpansQuery(Query, frozen=True, kw_only=True):
    """Without ``steps`` the shard servers' recordings are ended and handed in."""

    steps: Annotated[int, documented(0, MAX_STEPS)] = 0
    wait_s: Annotated[int, documented(0, int(MAX_WAIT_S))] = 0
    most: Annotated[int, documented(1, MAX_SPANS)] = 1


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """A trace that Perfetto opens, and what it says: viewers pass over the latter.

    ``missing``: nodes that did not answer, and why.
    """

    events: list[TraceEvent] = msgspec.field(name="traceEvents")
    unit: str = msgspec.field(name="displayTimeUnit", default="ms")
    other: dict[str, Any] = msgspec.field(name="otherData", default_factory=dict)
    profile: StepProfile
    missing: dict[str, str]


class ProfileRoutes:
    def __init__(self, node: Node, client: aiohttp.ClientSession) -> None:
        self._node = node
        self._client = client
        self._under_way: set[JobKey] = set()

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "POST",
        "/api/v1/jobs/{job}/profile",
        "Record some steps of a job, in all its processes, as one trace",
        role=Role.SUBMIT,
        body=ProfileBody,
        answer=Trace,
    )
    async def profile(self, request: web.Request) -> web.Response:
        """It is answered when all workers have taken the steps, or ``wait_s`` are over.

        The answer is a file for Perfetto as it is. A submitter may profile its own jobs alone; a
        job is profiled once at a time.
        """
        job = job_named(self._node.view, request)
        require_own(request, job)
        body = await body_of(request, ProfileBody)
        in_range("steps", body.steps, 1, MAX_STEPS)
        in_range("wait_s", body.wait_s, 1, int(MAX_WAIT_S))
        if not job.active or not job.running:
            raise UsageError(
                f"job {job.name} has no worker now", field="job", limit="a job that trains"
            )
        if job.key in self._under_way:
            raise Conflict(
                f"job {job.name} is being profiled", field="job", limit="one profile at a time"
            )
        self._under_way.add(job.key)
        try:
            return await self._profile(job, body)
        finally:
            self._under_way.discard(job.key)

    async def _profile(self, job: JobView, body: ProfileBody) -> web.Response:
        spec = job.spec
        assert spec is not None
        records = list(self._node.view.nodes.values())
        missing: dict[str, str] = {}
        processes = len(self._node.view.servers) + len(job.running)
        most = max(1, MAX_SPANS // processes)
        clocks = await asyncio.gather(*(self._clock(each, missing) for each in records))
        ahead = {each.node: clock for each, clock in zip(records, clocks, strict=True)}
        query = f"steps={body.steps}&wait_s={body.wait_s}&most={most}"
        found: list[ProcessSpans] = []
        for part, wait_s in ((query, body.wait_s), ("", 0)):
            answers = await asyncio.gather(
                *(self._ask(each, job, part, wait_s, missing) for each in records)
            )
            found += [each for answer in answers for each in answer.processes]
        document = await asyncio.to_thread(_document, found, ahead, missing, spec)
        return web.Response(body=document, content_type=JSON)

    async def _clock(self, record: NodeRecord, missing: dict[str, str]) -> tuple[int, int]:
        if record.machine == self._node.machine:
            return 0, 0  # one clock for all processes of a machine
        url = f"{record.http}/api/v1/clock"

        async def read() -> int:
            proof = asking(self._node.access, record)
            async with self._client.get(url, timeout=CLOCK_TIMEOUT, **proof) as response:
                return msgspec.json.decode(await response.read(), type=ClockReading).monotonic_ns

        try:
            return await clock_ahead(read)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            missing[record.node] = f"its clock was not read: {error or type(error).__name__}"
            return 0, 0

    async def _ask(
        self, record: NodeRecord, job: JobView, query: str, wait_s: int, missing: dict[str, str]
    ) -> NodeSpans:
        if record.node in missing:
            return NodeSpans()
        try:
            if record.node == self._node.name:
                asked = dict(pair.split("=") for pair in query.split("&") if pair)
                return await self._recorded(
                    job, SpansQuery(**{k: int(v) for k, v in asked.items()})
                )
            url = f"{record.http}/api/v1/jobs/{job.name}/spans?{query}"
            timeout = aiohttp.ClientTimeout(total=wait_s + ANSWER_S)
            proof = asking(self._node.access, record)
            async with self._client.get(url, timeout=timeout, **proof) as response:
                return msgspec.json.decode(await response.read(), type=NodeSpans)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError, ElasticError) as error:
            log.info("node=%s is not in the profile of %s: %s", record.node, job.name, error)
            missing[record.node] = str(error) or type(error).__name__
            return NodeSpans()

    @operation(
        "GET",
        "/api/v1/jobs/{job}/spans",
        "What the processes of the node that is asked record of a job: for other nodes",
        role=Role.READ,
        query=SpansQuery,
        answer=NodeSpans,
    )
    async def spans(self, request: web.Request) -> web.Response:
        """Users ask for a profile, which asks all nodes this."""
        job = job_named(self._node.view, request)
        return as_json(await self._recorded(job, query_of(request, SpansQuery)))

    async def _recorded(self, job: JobView, asked: SpansQuery) -> NodeSpans:
        in_range("steps", asked.steps, 0, MAX_STEPS)
        in_range("wait_s", asked.wait_s, 0, int(MAX_WAIT_S))
        in_range("most", asked.most, 1, MAX_SPANS)
        node, recordings = self._node, self._node.recordings
        if not asked.steps:
            return NodeSpans(processes=tuple(await recordings.of_servers(node.name, job.key)))
        lives = [each for each in node.workers.lives.values() if each.job == job.key]
        ranks = {
            each.uid: each.progress.rank if each.progress else 0
            for each in lives
            if each.joined and not each.ended
        }
        workers = await recordings.of_workers(
            node.name, job.key, ranks, asked.steps, asked.wait_s, asked.most
        )
        return NodeSpans(processes=tuple(workers))

    @operation(
        "GET",
        "/api/v1/clock",
        "The clock of the node that is asked, by which its spans are told",
        role=Role.READ,
        answer=ClockReading,
    )
    async def clock(self, _: web.Request) -> web.Response:
        return as_json(ClockReading(monotonic_ns=time.monotonic_ns()))


def _document(
    found: list[ProcessSpans],
    ahead: dict[Any, tuple[int, int]],
    missing: dict[str, str],
    spec: JobSpec,
) -> bytes:
    """The answer as JSON: worth a thread, for it may be megabytes."""
    told = [
        msgspec.structs.replace(
            each, ahead_ns=ahead[each.node][0], error_ns=ahead[each.node][1]
        ).on_one_clock()
        for each in found
    ]
    told.sort(key=lambda each: (not each.is_worker, each.rank or 0, each.node))
    kept = in_the_steps(told)
    in_step = spec.consistency is Consistency.SYNC and not spec.backup_workers
    profile = step_profile(kept, spec.codec, in_step=in_step)
    about = {"clock_error_s": profile.clock_error_s, "spans_left_out": profile.left_out}
    trace = Trace(events=list(trace_events(kept)), other=about, profile=profile, missing=missing)
    return msgspec.json.encode(trace)
