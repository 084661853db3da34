"""The request that changes how many workers a job has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import msgspec
from aiohttp import web

from elasticps.core.consistency import documented, in_range
from elasticps.core.ids import WorkerId
from elasticps.core.records import JobSpec, ScaleRecord, encode
from elasticps.daemon.http.answers import JobRow
from elasticps.daemon.http.body import as_json, body_of, job_named
from elasticps.daemon.http.contract import operation, routes_of
from elasticps.daemon.http.guard import require_own
from elasticps.daemon.http.status import ClusterStatus
from elasticps.daemon.http.submission import MAX_WORKERS
from elasticps.daemon.node import Node
from elasticps.daemon.view import JobView
from elasticps.errors import StoreError, UsageError
from elasticps.security.tokens import Role
from elasticps.store import Compare


class ScaleBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``POST /api/v1/jobs/{job}/scale``."""

    workers: Annotated[int, documented(1, MAX_WORKERS)]


class ScaleRoutes:
    def __init__(self, node: Node, status: ClusterStatus) -> None:
        self._node = node
        self._status = status

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "POST",
        "/api/v1/jobs/{job}/scale",
        "Ask for another number of workers",
        role=Role.SUBMIT,
        body=ScaleBody,
        answer=JobRow,
        status=202,
    )
    async def scale(self, request: web.Request) -> web.Response:
        """Write the wish beside the spec; the leader plans by it from then on.

        ``workers_asked`` of the job is the number once the leader heeds it. Two at the same moment:
        the second is answered 409.
        """
        job = job_named(self._node.view, request)
        require_own(request, job)
        same = self._node.keys.same_job(job.name, job.key)
        body = await body_of(request, ScaleBody)
        spec = job.spec
        if spec is None or not job.active:
            raise UsageError(f"job {job.name} has ended", field="job", limit="a job that runs")
        in_range("workers", body.workers, 1, spec.max_workers)
        before = await self._node.store.get(self._node.keys.job_scale(job.name))
        ranks = await self._ranks(job, spec, body.workers)
        record = encode(ScaleRecord(workers=body.workers, ranks=ranks))
        await self._write(job, record, before.mod_revision if before else 0, same)
        return as_json(await self._status.job(job), status=202)

    async def _ranks(self, job: JobView, spec: JobSpec, workers: int) -> tuple[WorkerId, ...]:
        """The job's workers, the main one first. Raises UsageError where it would never begin."""
        progress = await self._status.progress_of(job)
        if workers < spec.start_workers and not any(each.round for each in progress.values()):
            raise UsageError(
                f"job {job.name} does not train yet, and begins with {spec.start_workers} workers",
                field="workers",
                limit=f"at least {spec.start_workers} until its first round",
                hint="ask again when it trains, or cancel it and submit it with --start-workers",
            )
        known = [uid for uid in progress if uid in job.workers]
        in_order = sorted(known, key=lambda uid: (progress[uid].rank, job.workers[uid].worker))
        return tuple(job.workers[uid].worker for uid in in_order)

    async def _write(self, job: JobView, record: bytes, revision: int, same: Compare) -> None:
        store, key = self._node.store, self._node.keys.job_scale(job.name)
        if revision:
            written = await store.replace(key, record, revision)
        else:
            written = await store.create(key, record, given=(same,))
        if written is None:
            raise StoreError(
                "another number of workers was asked for at the same moment",
                where=f"job {job.name}",
                hint="look at the job, and ask again",
            )
        await self._node.until(lambda: self._node.view.revision >= written)
