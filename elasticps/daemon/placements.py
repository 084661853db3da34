"""The leader's questions to the placements that jobs chose: when they are asked, what they said."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import aiohttp

from elasticps.core.chosen import BALANCED
from elasticps.core.ids import JobKey, ServerId
from elasticps.core.placement import Site
from elasticps.core.proposal import Placed, Situation, situation_of
from elasticps.daemon.access import NodeAccess
from elasticps.daemon.load_reports import LoadReports
from elasticps.daemon.placing import ask
from elasticps.daemon.view import ClusterView, JobView

log = logging.getLogger(__name__)

PERIOD_S = 5.0
AFTER_REFUSAL_S = 30.0
PROCESSES = 2
"""Placements that run at a time: one that hangs must not hold up all others for long."""

Ask = Callable[[str, Situation], Awaitable[Placed]]


def sites_of(view: ClusterView) -> list[Site]:
    """The servers that may hold blocks; those of a node share its weight."""
    return [
        Site(
            server=server.server,
            node=record.node,
            weight=record.weight / len(record.servers),
            zone=record.zone,
        )
        for record in view.schedulable
        for server in record.servers
    ]


def alive(view: ClusterView) -> set[ServerId]:
    return {server.server for server in view.servers}


def has_own_placement(job: JobView) -> bool:
    """Does another than ``balanced`` place its blocks, once there is a whole plan?"""
    planned = bool(job.sizes) and len(job.entries) == len(job.sizes)
    return job.spec is not None and job.spec.placement != BALANCED and planned


class Placements:
    """What each job's placement said last. ``run`` keeps it new while this node leads."""

    def __init__(
        self,
        view: ClusterView,
        changed: asyncio.Condition,
        ask: Ask = ask,
        access: NodeAccess | None = None,
    ) -> None:
        self.placed: dict[JobKey, Placed] = {}
        self._view = view
        self._changed = changed
        self._ask = ask
        self._access = access
        self._window = asyncio.Semaphore(PROCESSES)

    async def run(self) -> None:
        """Ask for each job that has a placement of its own, until cancelled."""
        asking: dict[JobKey, asyncio.Task[None]] = {}
        async with aiohttp.ClientSession() as client:
            reports = LoadReports(client, self._access)
            try:
                while True:
                    jobs = {job.key for job in self._view.active_jobs if has_own_placement(job)}
                    for key in asking.keys() - jobs:
                        asking.pop(key).cancel()
                        self.placed.pop(key, None)
                    for key in jobs - asking.keys():
                        asking[key] = asyncio.create_task(self._keep_asking(key, reports))
                    async with self._changed:
                        await self._changed.wait()
            finally:
                for task in asking.values():
                    task.cancel()
                await asyncio.gather(*asking.values(), return_exceptions=True)
                self.placed.clear()

    async def _keep_asking(self, key: JobKey, reports: LoadReports) -> None:
        while True:
            sites = sites_of(self._view)
            try:
                await self._consult(key, reports)
            except Exception as error:
                log.exception("job=%s its placement was not asked", key)
                self.placed[key] = Placed(refusal=f"it was not asked: {type(error).__name__}")
            refused = key in self.placed and self.placed[key].refusal
            async with self._changed:
                self._changed.notify_all()
                try:
                    async with asyncio.timeout(AFTER_REFUSAL_S if refused else PERIOD_S):
                        await self._changed.wait_for(lambda: sites_of(self._view) != sites)  # noqa: B023
                except TimeoutError:
                    continue

    async def _consult(self, key: JobKey, reports: LoadReports) -> None:
        """Ask once; where no server tells its load what was said before stays."""
        await reports.look(list(self._view.nodes.values()))
        job = next((job for job in self._view.active_jobs if job.key == key), None)
        sites, totals = sites_of(self._view), reports.totals()
        if job is None or job.spec is None or not has_own_placement(job):
            return
        if not sites or not any(site.server in totals for site in sites):
            return
        name, placement = job.name, job.spec.placement
        situation = situation_of(
            name,
            job.sizes,
            job.entries,
            sites,
            alive(self._view),
            job.spec.replicas,
            reports.of(job.key),
            totals,
            job.wishes,
        )
        async with self._window:
            placed = await self._ask(placement, situation)
        if placed.refusal:
            log.warning("job=%s placement %s: %s", name, placement, placed.refusal)
        self.placed[key] = placed
