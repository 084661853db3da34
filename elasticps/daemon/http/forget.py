"""The request that forgets a job that has ended."""

from __future__ import annotations

from collections.abc import Iterable

from aiohttp import web

from elasticps.daemon.http.answers import Forgotten
from elasticps.daemon.http.body import as_json, job_named
from elasticps.daemon.http.contract import operation, routes_of
from elasticps.daemon.http.guard import require_own
from elasticps.daemon.http.refusals import Conflict
from elasticps.daemon.node import Node
from elasticps.daemon.retention import forgetting
from elasticps.daemon.view import JobView
from elasticps.errors import UsageError
from elasticps.security.tokens import Role


class ForgetRoutes:
    def __init__(self, node: Node) -> None:
        self._node = node

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    @operation(
        "DELETE",
        "/api/v1/jobs/{job}",
        "Forget a job that has ended",
        role=Role.SUBMIT,
        answer=Forgotten,
    )
    async def forget(self, request: web.Request) -> web.Response:
        """What etcd holds of it is deleted, and its name may be given again; its checkpoints stay.

        A submitter may forget its own jobs alone.
        """
        job = job_named(self._node.view, request)
        require_own(request, job)
        _check_ended(job)
        assert job.spec is not None
        answer = Forgotten(job=job.name, checkpoint_dir=job.spec.checkpoint_dir)
        delete, unchanged = forgetting(self._node.keys, job)
        result = await self._node.store.txn((unchanged,), (delete,))
        if not result.succeeded:
            raise Conflict(
                f"job {answer.job} is another than this daemon has heard of",
                field="job",
                limit="a job that has ended",
                hint="look at it, and ask again",
            )
        await self._node.until(lambda: self._node.view.revision >= result.revision)
        return as_json(answer)


def _check_ended(job: JobView) -> None:
    if job.ended:
        return
    if "status" in job.damaged:
        raise UsageError(
            f"the status of job {job.name} in etcd cannot be read: it may not have ended",
            field="job",
            limit="a job that has ended",
            hint="restore its status, or delete its keys with etcdctl once nothing of it runs",
        )
    raise UsageError(
        f"job {job.name} has not ended",
        field="job",
        limit="a job that has ended",
        hint=f"`elasticps cancel {job.name}` ends it",
    )
