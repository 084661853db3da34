"""Requests about checkpoints: ask for one now, list what there is; which was the newest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import aiohttp
import msgspec
from aiohttp import web

from elasticps.checkpoint.listing import list_checkpoints
from elasticps.checkpoint.url import place_of
from elasticps.core.ids import JobKey, JobName
from elasticps.core.records import JobSpec, NodeRecord
from elasticps.daemon.access import asking
from elasticps.daemon.http.answers import CheckpointAsked, CheckpointList
from elasticps.daemon.http.body import as_json, gone, job_named, query_of
from elasticps.daemon.http.contract import Query, operation, routes_of
from elasticps.daemon.http.guard import require_own
from elasticps.daemon.http.meant import job_meant, meaning
from elasticps.daemon.http.repeats import Repeats
from elasticps.daemon.node import Node
from elasticps.daemon.reachable import check_reachable
from elasticps.daemon.view import JobView
from elasticps.errors import CheckpointError, UsageError
from elasticps.security.tokens import Role
from elasticps.store import Put
from elasticps.wire.control_messages import CheckpointReport, Progress

log = logging.getLogger(__name__)

LOCAL_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
"""For another node's look at its disk."""


class CheckpointsQuery(Query, frozen=True):
    """``local``: as this node sees them, without asking others."""

    local: bool = False


class CheckpointRoutes:
    def __init__(self, node: Node, repeats: Repeats, client: aiohttp.ClientSession) -> None:
        self._node = node
        self._repeats = repeats
        self._client = client

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "GET",
        "/api/v1/jobs/{job}/checkpoints",
        "The checkpoints that the job has written, the newest first",
        role=Role.READ,
        query=CheckpointsQuery,
        answer=CheckpointList,
    )
    async def checkpoints(self, request: web.Request) -> web.Response:
        """What this node finds in the job's directory; else what another does.

        The directory is the main worker's machine's, where no file system is shared.
        """
        job = await job_meant(self._node, request)
        name, key = job.name, job.key
        assert job.spec is not None
        _check_directory(job, job.spec)
        found = await self._look(name, job.spec.checkpoint_dir)
        if not found.checkpoints and not query_of(request, CheckpointsQuery).local:
            others = [node for node in self._node.view.nodes if node != self._node.name]
            records = [self._node.view.nodes[node] for node in sorted(others)]
            answers = await asyncio.gather(*(self._ask(record, name, key) for record in records))
            found = next((each for each in answers if each and each.checkpoints), found)
        return as_json(found)

    async def _look(self, job: JobName, directory: str) -> CheckpointList:
        found = CheckpointList(job=job, directory=directory, node=self._node.name)
        try:
            # In a thread: a file system may take its time.
            rows = await asyncio.to_thread(list_checkpoints, place_of(directory))
        except CheckpointError as error:
            return msgspec.structs.replace(found, problem=error.what)
        return msgspec.structs.replace(found, checkpoints=tuple(rows))

    async def _ask(self, record: NodeRecord, job: JobName, key: JobKey) -> CheckpointList | None:
        url = f"{record.http}/api/v1/jobs/{job}/checkpoints?local=true"
        try:
            proof = asking(self._node.access, record)
            async with self._client.get(
                url, timeout=LOCAL_TIMEOUT, headers=meaning(key), **proof
            ) as response:
                return msgspec.json.decode(await response.read(), type=CheckpointList)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            log.info("node=%s does not list checkpoints: %s", record.node, error)
            return None

    @operation(
        "POST",
        "/api/v1/jobs/{job}/checkpoint",
        "Ask for a checkpoint after the round under way",
        role=Role.SUBMIT,
        answer=CheckpointAsked,
        status=202,
        keyed=True,
    )
    async def ask_for_checkpoint(self, request: web.Request) -> web.Response:
        """The job's main worker writes it. A submitter may ask it of its own jobs alone."""
        job = job_named(self._node.view, request)
        require_own(request, job)
        name, key = job.name, job.key
        done = await self._repeats.earlier(request)
        if done is None:
            spec = job.spec
            if spec is None:
                raise gone(name)
            _check(job, spec)
            await check_reachable({"checkpoint_dir": spec.checkpoint_dir})
            put = Put(self._node.keys.job_checkpoint(name), b"{}")
            # Which request it is, the revision tells that the write is going to have.
            unnumbered = CheckpointAsked(job=name, request=0)
            same = self._node.keys.same_job(name, key)
            done = await self._repeats.write(request, put, unnumbered, given=(same,))
            if done is None:
                raise gone(name)
        return done.response(202, CheckpointAsked(job=name, request=done.revision))


def _check(job: JobView, spec: JobSpec) -> None:
    _check_directory(job, spec)
    if not job.active:
        raise UsageError(f"job {job.name} has ended", field="job", limit="a job that runs")


def _check_directory(job: JobView, spec: JobSpec) -> None:
    if not spec.checkpoint_dir:
        raise UsageError(
            f"job {job.name} has no directory for checkpoints",
            field="checkpoint_dir",
            hint="submit it with --checkpoint-dir",
        )


def newest_report(progress: Iterable[Progress]) -> CheckpointReport | None:
    """What became of a job's newest checkpoint, of all that its workers say of theirs."""
    reports = [item.checkpoint for item in progress if item.checkpoint is not None]
    return max(reports, key=lambda report: (report.request, report.round), default=None)
