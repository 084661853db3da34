"""Requests about checkpoints: ask for one now; which was the newest."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from elasticps.core.records import JobSpec
from elasticps.daemon.http.body import as_json, job_named
from elasticps.daemon.http.guard import require_own
from elasticps.daemon.node import Node
from elasticps.daemon.view import JobView
from elasticps.errors import UsageError
from elasticps.wire.messages import CheckpointReport, Progress


class CheckpointRoutes:
    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> Iterable[web.RouteDef]:
        return (web.post("/api/v1/jobs/{job}/checkpoint", self.ask),)

    async def ask(self, request: web.Request) -> web.Response:
        """Ask the job's main worker for a checkpoint after the round under way.

        The answer's ``request`` is what the job's ``checkpoint.request`` has reached once it is
        there, or could not be written.
        """
        job = job_named(self._node.view, request)
        require_own(request, job)
        assert job.spec is not None
        _check(job, job.spec)
        key = self._node.keys.job_checkpoint(job.name)
        return as_json({"job": job.name, "request": await self._node.store.put(key, b"{}")}, 202)


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
