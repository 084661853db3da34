"""Requests about a job's curves, and how they are kept.

The node whose worker is the job's main one samples it; two more nodes copy the points, so that they
outlive it. Who the three are every daemon reads off etcd, and nobody else is asked.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Annotated

import aiohttp
import msgspec
from aiohttp import web

from elasticps.core.consistency import Consistency
from elasticps.core.ids import JobKey, NodeId, Round
from elasticps.core.records import NodeRecord
from elasticps.daemon.access import asking
from elasticps.daemon.http.answers import SeriesAnswer
from elasticps.daemon.http.background import running
from elasticps.daemon.http.body import as_json, query_of
from elasticps.daemon.http.contract import Query, operation, routes_of
from elasticps.daemon.http.meant import job_meant, meaning
from elasticps.daemon.life import Life
from elasticps.daemon.node import Node
from elasticps.daemon.series import Point, Series, merged
from elasticps.daemon.view import ClusterView, JobView
from elasticps.security.tokens import Role
from elasticps.wire.control_messages import Progress

log = logging.getLogger(__name__)

KEEPERS = 3
SAMPLE_PERIOD_S = 1.0
COPY_PERIOD_S = 5.0
FORGET_S = 3600.0
"""How long the curves of a job that has ended are kept."""
ASK_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
ASKED_AT_ONCE = 8


class SeriesQuery(Query, frozen=True):
    since: Annotated[
        float, msgspec.Meta(ge=0, description="Points after this moment, in seconds since 1970.")
    ] = 0.0
    local: Annotated[bool, msgspec.Meta(description="What the node that is asked has.")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """What the next rates are measured from."""

    uid: str
    at: float
    round: Round
    pushed_bytes: int


def keepers(view: ClusterView, job: JobView) -> tuple[NodeId, ...]:
    """The nodes that keep an active job's curves: the main worker's, others' with workers, any."""
    nodes = dict.fromkeys(node for node, report in job.reports.items() if report.main is not None)
    nodes |= dict.fromkeys(life.record.node for life in job.running)
    if len(nodes) < KEEPERS:
        nodes |= dict.fromkeys(sorted(view.nodes))
    return tuple(node for node in nodes if node in view.nodes)[:KEEPERS]


class SeriesRoutes:
    def __init__(self, node: Node, client: aiohttp.ClientSession) -> None:
        self._node = node
        self._client = client
        self._series: dict[JobKey, Series] = {}
        self._keepers: dict[JobKey, tuple[NodeId, ...]] = {}
        self._last: dict[JobKey, _Sample] = {}
        self._caught_up: set[JobKey] = set()
        self._window = asyncio.Semaphore(ASKED_AT_ONCE)

    def routes(self) -> Iterable[web.RouteDef]:
        return routes_of(self)

    async def life(self, _: web.Application) -> AsyncIterator[None]:
        """Points are kept as long as the application lives: a cleanup context of aiohttp."""
        async with running(sample_curves=self._sample_all(), copy_curves=self._copy_all()):
            yield

    @operation(
        "GET",
        "/api/v1/jobs/{job}/series",
        "The job's curves",
        role=Role.READ,
        query=SeriesQuery,
        answer=SeriesAnswer,
    )
    async def series(self, request: web.Request) -> web.Response:
        job = await job_meant(self._node, request)
        asked = query_of(request, SeriesQuery)
        since = asked.since
        own = self._series.get(job.key, Series()).points(since)
        if asked.local:
            return as_json(SeriesAnswer(job=job.name, points=own))
        others = await self._others(job, since)
        return as_json(SeriesAnswer(job=job.name, points=merged([*others, own])))

    # -- sampling -------------------------------------------------------------------------------

    async def _sample_all(self) -> None:
        while True:
            for life in self._node.workers.lives.values():
                progress = life.progress
                if progress is not None and progress.rank == 0 and not life.ended:
                    point = self._sample(life, progress)
                    self._series.setdefault(life.job, Series()).add(point)
            self._follow_view()
            await asyncio.sleep(SAMPLE_PERIOD_S)

    def _sample(self, life: Life, progress: Progress) -> Point:
        now, last = time.monotonic(), self._last.get(life.job)
        self._last[life.job] = _Sample(
            uid=life.uid, at=now, round=progress.round, pushed_bytes=progress.pushed_bytes
        )
        rounds = pushed = None
        if last is not None and last.uid == life.uid:
            elapsed_s = now - last.at
            rounds = round((progress.round - last.round) / elapsed_s, 3)
            own = (progress.pushed_bytes - last.pushed_bytes) / elapsed_s
            pushed = round(own * progress.world, 1)
        return Point(
            unix_s=round(time.time(), 3),
            round=progress.round,
            metrics=dict(progress.metrics),
            rounds_per_s=rounds,
            pushed_bytes_per_s=pushed,
            workers=progress.world,
            staleness=self._staleness(life),
        )

    def _staleness(self, life: Life) -> int | None:
        """None in a round of all workers; else by those of this node, if it has several."""
        job = self._node.view.jobs.get(life.job_name)
        if job is None or job.spec is None:
            return None
        if job.spec.consistency is Consistency.SYNC:
            return 0
        rounds = [
            each.progress.round
            for each in self._node.workers.lives.values()
            if each.job == life.job and each.progress is not None and not each.ended
        ]
        return max(rounds) - min(rounds) if len(rounds) > 1 else None

    def _follow_view(self) -> None:
        """Note who keeps what, and forget jobs that ended long ago."""
        view = self._node.view
        known: set[JobKey] = set()
        for job in view.jobs.values():
            if job.active:
                self._keepers[job.key] = keepers(view, job)
            ended = job.status.ended_unix if job.status else None
            if ended is None or time.time() - ended < FORGET_S:
                known.add(job.key)
        for kept in (self._series, self._keepers, self._last):
            for key in kept.keys() - known:
                del kept[key]
        self._caught_up &= known

    # -- other keepers --------------------------------------------------------------------------

    async def _copy_all(self) -> None:
        while True:
            me, jobs = self._node.name, self._node.view.active_jobs
            mine = [job for job in jobs if me in self._keepers.get(job.key, ())]
            self._caught_up &= {job.key for job in mine}
            await asyncio.gather(*(self._copy(job) for job in mine))
            await asyncio.sleep(COPY_PERIOD_S)

    async def _copy(self, job: JobView) -> None:
        """A new keeper takes what the others have; later all but the first what the first has."""
        names, me = self._keepers.get(job.key, ()), self._node.name
        if not names:
            return
        if job.key not in self._caught_up:
            asked, since = [name for name in names if name != me], 0.0
        elif names[0] != me:
            known = self._series.get(job.key)
            asked, since = [names[0]], known.newest_unix_s if known else 0.0
        else:
            return
        records = [self._node.view.nodes[name] for name in asked if name in self._node.view.nodes]
        for points in await asyncio.gather(*(self._ask(each, job, since) for each in records)):
            self._series.setdefault(job.key, Series()).merge(points)
        self._caught_up.add(job.key)

    async def _others(self, job: JobView, since: float) -> list[list[Point]]:
        view = self._node.view
        names = self._keepers.get(job.key) or keepers(view, job)
        records = [view.nodes[name] for name in names if name in view.nodes]
        return await asyncio.gather(
            *(self._ask(each, job, since) for each in records if each.node != self._node.name)
        )

    async def _ask(self, record: NodeRecord, job: JobView, since: float) -> list[Point]:
        """What another node has; nothing where it does not answer."""
        url = f"{record.http}/api/v1/jobs/{job.name}/series?local=true&since={since}"
        try:
            proof = asking(self._node.access, record)
            async with (
                self._window,
                self._client.get(
                    url, timeout=ASK_TIMEOUT, headers=meaning(job.key), **proof
                ) as response,
            ):
                if response.status != web.HTTPOk.status_code:
                    return []
                return msgspec.json.decode(await response.read(), type=SeriesAnswer).points
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            log.info("node=%s job=%s its curves are not had: %s", record.node, job.name, error)
            return []
