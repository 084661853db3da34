"""Requests about checkpoints: ask for one now; which was the newest."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from elasticps.core.records import JobSpec
from elasticps.daemon.http.answers import CheckpointAsked
from elasticps.daemon.http.body import job_named
from elasticps.daemon.http.contract import operation, routes_of
from elasticps.daemon.http.guard import require_own
from elasticps.daemon.http.repeats import Repeats
from elasticps.daemon.node import Node
from elasticps.daemon.view import JobView
from elasticps.errors import UsageError
from elasticps.security.tokens import Role
from elasticps.store import Put
from elasticps.wire.messages import CheckpointReport, Progress


class CheckpointRoutes:
    def __init__(self, node: Node, repeats: Repeats) -> None:
        self._node = node
        self._repeats = repeats

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

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
        done = await self._repeats.earlier(request)
        if done is None:
            assert job.spec is not None
            _check(job, job.spec)
            put = Put(self._node.keys.job_checkpoint(job.name), b"{}")
            # Which request it is, the revision tells that the write is going to have.
            unnumbered = CheckpointAsked(job=job.name, request=0)
            done = await self._repeats.write(request, put, unnumbered)
            assert done is not None
        return done.response(202, CheckpointAsked(job=job.name, request=done.revision))


def _check(job: JobView, spec: JobSpec) -> None:
    if not spec.checkpoint_dir:
        raise UsageError(
            f"job {job.name} has no directory for checkpoints",
            field="checkpoint_dir",
            hint="submit it with --checkpoint-dir",
        )
    if not job.active:
        raise UsageError(f"job {job.name} has ended", field="job", limit="a job that runs")


def newest_report(progress: Iterable[Progress]) -> CheckpointReport | None:
    """What became of a job's newest checkpoint, of all that its workers say of theirs."""
    reports = [item.checkpoint for item in progress if item.checkpoint is not None]
    return max(reports, key=lambda report: (report.request, report.round), default=None)
