"""The leader's work: from the view of the cluster to the writes that move it on.

``decide`` is pure; ``Leader`` carries its writes out under the fence of the leadership, and decides
again when they have come back through the watch.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import msgspec

from elasticps.core.ids import JobKey, JobName, NodeId, ServerId, node_of
from elasticps.core.jobs import lost, next_status, with_copies
from elasticps.core.past_lives import counted, outlived
from elasticps.core.placement import Site, least_bytes, spread
from elasticps.core.plan import Entry, encode_part, part_of, parts
from elasticps.core.planner import Planned, destinations, first_plan, next_plan, targets
from elasticps.core.proposal import Placed, wanted
from elasticps.core.reasons import dated
from elasticps.core.records import JobSpec, JobState, JobStatus, LivingWorker, Movement, encode
from elasticps.daemon.access import NodeAccess
from elasticps.daemon.config import DEFAULT_KEPT_JOBS
from elasticps.daemon.placements import Placements, alive, has_own_placement, sites_of
from elasticps.daemon.process_group import makes_own_group
from elasticps.daemon.retention import clearing, forgetting, outdated
from elasticps.daemon.view import ClusterView, JobView
from elasticps.errors import StoreError, StoreUnavailable
from elasticps.store import Compare, Delete, Fence, Keys, Put, Store

log = logging.getLogger(__name__)

PARTS_A_WRITE = 8
"""Parts of a plan in one transaction: their values together stay below etcd's request limit."""
RETRY_S = 0.2
NONE_PLACED: Mapping[JobKey, Placed] = MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One fenced transaction of the leader, and why."""

    job: JobName
    operations: tuple[Put | Delete, ...]
    compares: tuple[Compare, ...]
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """One moment: ``unix`` is written down, ``monotonic`` is what waiting is measured by."""

    unix: float
    monotonic: float


def decide(
    view: ClusterView,
    now: Now,
    orphans: Orphans,
    placed: Mapping[JobKey, Placed] = NONE_PLACED,
    kept_jobs: int = DEFAULT_KEPT_JOBS,
) -> list[Write]:
    """One write at most for each job that is not as it should be, then for some of the old ones.

    A job whose status cannot be read is left alone: it may have ended. Of those that have, the
    newest ``kept_jobs`` stay, and whichever ended a moment ago.
    """
    orphans.keep_only({job.key for job in view.active_jobs})
    writes = []
    for job in view.jobs.values():
        if job.spec is None or "status" in job.damaged:
            continue
        write = (
            _cleared(view.keys, job)
            if not job.active
            else _advanced(view, job, job.spec, now, orphans, placed.get(job.key, Placed()))
        )
        if write is not None:
            writes.append(write)
    old = outdated(view.jobs.values(), kept_jobs, now.unix)
    return writes + [_forgotten(view.keys, job, kept_jobs) for job in old]


class Orphans:
    """Which jobs have blocks without a living holder, since when, by one leader's clock.

    After ``lost_after_s`` a job is not waited for any more.
    """

    def __init__(self, lost_after_s: float) -> None:
        self.lost_after_s = lost_after_s
        self._since: dict[JobKey, float] = {}

    def keep_only(self, jobs: Collection[JobKey]) -> None:
        """The others have ended."""
        self._since = {job: since for job, since in self._since.items() if job in jobs}

    def overdue(self, job: JobKey, orphaned: bool, now: Now) -> bool:
        if not orphaned:
            self._since.pop(job, None)
            return False
        since = self._since.setdefault(job, now.monotonic)
        return now.monotonic - since > self.lost_after_s


def _advanced(
    view: ClusterView,
    job: JobView,
    spec: JobSpec,
    now: Now,
    orphans: Orphans,
    placed: Placed,
) -> Write | None:
    slots = {record.node: record.worker_slots for record in view.schedulable if record.servers}
    status = next_status(
        spec,
        job.status,
        slots=slots,
        workers=list(job.workers.values()),
        revision=view.revision,
        cancelled=job.cancelled,
        now_unix=now.unix,
        scale=job.scale,
        draining=[node for node in sorted(view.drains) if node in view.nodes],
        own_group=makes_own_group(spec),
    )
    planned = Planned()
    if job.damaged and not status.state.final:
        reason = f"its {' and '.join(job.damaged)} in etcd cannot be read: its blocks stay put"
        status = msgspec.structs.replace(status, reason=reason)
    elif job.model is None and status.state is JobState.RUNNING:
        reason = f"{status.reason}; waiting for a script to come to run.optimizer()"
        status = msgspec.structs.replace(status, reason=reason)
    elif job.model is not None and not status.state.final:
        planned = _plan(view, job, spec, placed)
        status = _with_movement(view, job, spec, status, planned)
        status = with_copies(spec, status, _following(job, planned.changed), alive(view))
        status = _with_refusal(spec, status, placed)
        status = _with_orphans(view, job, spec, status, planned.orphaned, orphans, now)
    gone = [] if status.state.final else outlived(job.workers.values())
    if gone:
        status = msgspec.structs.replace(status, past=counted(status.past, gone))
    status = dated(status, job.status, now.unix)
    return _write(view.keys, job, status, planned.changed, gone)


def _plan(view: ClusterView, job: JobView, spec: JobSpec, placed: Placed) -> Planned:
    """The next step, as far as one transaction can carry it."""
    sites, entries = sites_of(view), job.entries
    if len(entries) < len(job.sizes):
        first = first_plan(job.sizes, sites, spec.replicas) if sites else ()
        missing = tuple(entry for entry in first if part_of(entry.block) not in job.parts)
        return _limited(Planned(changed=missing))
    homes = homes_wanted(view, job, spec, placed)
    return _limited(
        next_plan(job.sizes, entries, sites, alive(view), job.caught_up, spec.replicas, homes)
    )


def homes_wanted(
    view: ClusterView, job: JobView, spec: JobSpec, placed: Placed
) -> list[tuple[ServerId, ...]]:
    """Where the blocks of a planned job should be, its placement having said ``placed``."""
    sites, living = sites_of(view), alive(view)
    if placed.refusal or not has_own_placement(job):
        return targets(job.sizes, job.entries, sites, living, spec.replicas, job.wishes)
    return wanted(placed.proposal, job.sizes, job.entries, sites, living, spec.replicas)


def _with_refusal(spec: JobSpec, status: JobStatus, placed: Placed) -> JobStatus:
    if not placed.refusal or status.state is not JobState.RUNNING:
        return status
    name = spec.placement.partition(":")[0]
    told = f"placement {name} is not heard, balanced is used meanwhile: {placed.refusal}"
    return msgspec.structs.replace(status, reason=f"{status.reason}; {told}")


def _following(job: JobView, changed: Sequence[Entry]) -> list[Entry]:
    """The plan as it will be when the changes are written."""
    current = {entry.block: entry for entry in job.entries}
    current.update((entry.block, entry) for entry in changed)
    return [current[block] for block in sorted(current)]


def _limited(planned: Planned) -> Planned:
    """What lies in the first few changed parts; the rest is decided again after this write."""
    touched = sorted({part_of(entry.block) for entry in planned.changed})[:PARTS_A_WRITE]
    return replace(
        planned,
        changed=tuple(entry for entry in planned.changed if part_of(entry.block) in touched),
        arrived=tuple(row for row in planned.arrived if part_of(row.block) in touched),
    )


def _with_movement(
    view: ClusterView, job: JobView, spec: JobSpec, status: JobStatus, planned: Planned
) -> JobStatus:
    """Count what has arrived, and what a change of the sites calls for at the least."""
    sites = sites_of(view)
    movement = status.movement
    names = tuple(site.server for site in sites)
    least = movement.least_value_bytes
    if names and names != status.sites:
        least += _least_bytes(view, job, spec, sites)
    movement = Movement(
        blocks=movement.blocks + len(planned.arrived),
        value_bytes=movement.value_bytes + sum(job.sizes[row.block] for row in planned.arrived),
        snapshot_bytes=movement.snapshot_bytes + sum(row.snapshot_bytes for row in planned.arrived),
        least_value_bytes=least,
    )
    return msgspec.structs.replace(status, movement=movement, sites=names or status.sites)


def _least_bytes(view: ClusterView, job: JobView, spec: JobSpec, sites: Sequence[Site]) -> int:
    """What these sites must receive; of a plan that is about to be made, its backups."""
    entries = job.entries
    if len(entries) < len(job.sizes):
        fills = spread(sites, spec.replicas).copies - 1
        return 0 if entries else fills * sum(job.sizes)
    held = destinations(entries, sites, alive(view), spec.replicas)
    return least_bytes(job.sizes, sites, held, spec.replicas)


def _with_orphans(
    view: ClusterView,
    job: JobView,
    spec: JobSpec,
    status: JobStatus,
    orphaned: Sequence[Entry],
    orphans: Orphans,
    now: Now,
) -> JobStatus:
    """Blocks all of whose holders are gone: wait for a node that may return with its server.

    The job is given up when none has in time, and at once where the servers are known to be dead.
    """
    overdue = orphans.overdue(job.key, bool(orphaned), now)
    if not orphaned:
        return status
    rows = {(row.block, row.learner, row.epoch) for row in job.caught_up}
    # The listed servers of these nodes are gone: of one that is registered, its server has died.
    homes = [
        {node_of(server) for server in entry.holders}
        | {node_of(each) for each in entry.learners if (entry.block, each, entry.epoch) in rows}
        for entry in orphaned
    ]
    forgotten = [nodes for nodes in homes if all(node in view.nodes for node in nodes)]
    if forgotten:
        one = len(set().union(*forgotten)) == 1
        why = f"the shard server{'' if one else 's'} of {_listed(forgotten)} died"
        why += _within(view, orphaned)
        return _lost(spec, status, len(forgotten), why, now)
    if overdue:
        why = f"{_listed(homes)} did not return in {orphans.lost_after_s:g} s"
        return _lost(spec, status, len(homes), why, now)
    away = [{node for node in nodes if node not in view.nodes} for nodes in homes]
    one = len(set().union(*away)) == 1
    only = "it holds the only replica of" if one else "they hold the only replicas of"
    waiting = f"waiting for {_listed(away)} to return: {only} {len(homes)} blocks"
    waiting += f"; after {orphans.lost_after_s:g} s the job fails"
    return msgspec.structs.replace(status, reason=waiting)


def _within(view: ClusterView, orphaned: Sequence[Entry]) -> str:
    """In which plugins the servers of these blocks died, as far as that is known."""
    dead = {server for entry in orphaned for server in entry.holders}
    ends = [end for node in view.nodes.values() for end in node.server_ends if end.server in dead]
    told = dict.fromkeys(end.within for end in ends)
    return f" in {'; in '.join(told)}" if told else ""


def _lost(spec: JobSpec, status: JobStatus, blocks: int, why: str, now: Now) -> JobStatus:
    reason = f"{blocks} blocks are lost: {why}, and no other replica was in sync"
    return lost(spec, status, reason, now.unix)


def _listed(nodes: Sequence[set[NodeId]]) -> str:
    return ", ".join(sorted(set().union(*nodes)))


def _write(
    keys: Keys,
    job: JobView,
    status: JobStatus,
    changed: Sequence[Entry],
    gone: Sequence[LivingWorker],
) -> Write | None:
    """The status and up to a few changed plan parts, as one transaction.

    With it go the workers' records ``gone``, whose counts the status has taken in.
    """
    name = job.name
    operations: list[Put | Delete] = []
    compares = [keys.same_job(name, job.key)]
    why = []
    touched = sorted({part_of(entry.block) for entry in changed})
    by_part = parts(_following(job, changed))
    for part in touched:
        known = job.parts.get(part)
        operations.append(Put(keys.plan_part(name, part), encode_part(by_part[part])))
        compares.append(
            Compare.modified(keys.plan_part(name, part), known.revision if known else 0)
        )
    if changed:
        why.append(f"{len(changed)} blocks change hands or gain a learner")
    if status != job.status:
        operations.append(Put(keys.job_status(name), encode(status)))
        compares.append(Compare.modified(keys.job_status(name), job.status_revision))
        if job.status is None or status.state is not job.status.state:
            why.append(f"{status.state.value}: {status.reason}")
    for life in gone:
        operations.append(Delete(keys.worker(name, life.uid)))
        compares.append(Compare.modified(keys.worker(name, life.uid), life.revision))
    if not operations:
        return None
    return Write(
        job=name, operations=tuple(operations), compares=tuple(compares), why="; ".join(why)
    )


def _cleared(keys: Keys, job: JobView) -> Write | None:
    """After a job's end its plan, reports and workers go; spec, model and status stay."""
    if job.cleared:
        return None
    deletes, unchanged = clearing(keys, job)
    why = "cleared after its end"
    return Write(job=job.name, operations=deletes, compares=(unchanged,), why=why)


def _forgotten(keys: Keys, job: JobView, kept: int) -> Write:
    delete, unchanged = forgetting(keys, job)
    why = f"forgotten: {kept} that ended later are kept"
    return Write(job=job.name, operations=(delete,), compares=(unchanged,), why=why)


class Leader:
    """Leads while its fence holds. ``kept_jobs`` may be changed meanwhile."""

    def __init__(
        self,
        store: Store,
        view: ClusterView,
        changed: asyncio.Condition,
        lost_after_s: float,
        access: NodeAccess | None = None,
        kept_jobs: int = DEFAULT_KEPT_JOBS,
    ) -> None:
        self.kept_jobs = kept_jobs
        self._store = store
        self._view = view
        self._changed = changed
        self._lost_after_s = lost_after_s
        self.placements = Placements(view, changed, access=access)

    async def lead(self, fence: Fence) -> None:
        """Decide and write until cancelled. Raises FenceLost when another has been elected."""
        asking = asyncio.create_task(self.placements.run(), name="placements")
        try:
            await self._lead(fence)
        finally:
            asking.cancel()
            await asyncio.wait({asking})

    async def _lead(self, fence: Fence) -> None:
        # What an earlier leadership saw begin may have ended and begun anew since.
        orphans = Orphans(self._lost_after_s)
        while True:
            now = Now(unix=time.time(), monotonic=time.monotonic())
            writes = decide(self._view, now, orphans, self.placements.placed, self.kept_jobs)
            for write in writes:
                await self._carry_out(fence, write)
            if not writes:
                await self._next_change()

    async def _carry_out(self, fence: Fence, write: Write) -> None:
        try:
            revision = await self._store.fenced(fence, write.operations, write.compares)
        except StoreUnavailable as error:
            # It may have been written: the watch will tell, and then what is left is decided.
            log.warning("job=%s write unanswered: %s", write.job, error)
            await asyncio.sleep(RETRY_S)
            return
        except StoreError as error:
            if type(error) is not StoreError:
                raise
            log.info("job=%s not written: %s", write.job, error)
            await self._next_change()
            return
        if write.why:
            log.info("job=%s revision=%d %s", write.job, revision, write.why)
        async with self._changed:
            await self._changed.wait_for(lambda: self._view.revision >= revision)

    async def _next_change(self) -> None:
        """Wait for the view to change; orphaned blocks are looked at again every second."""
        async with self._changed:
            try:
                async with asyncio.timeout(1.0):
                    await self._changed.wait()
            except TimeoutError:
                return
