"""The cluster's state for the API: what etcd says, and what each daemon alone knows of its node."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from importlib.metadata import version
from typing import Literal

import aiohttp
import msgspec

from elasticps.core.ids import NodeId, node_of
from elasticps.core.jobs import attempts, short_of_copies
from elasticps.core.reasons import standing_still
from elasticps.core.records import (
    JobSpec,
    JobState,
    JobStatus,
    LivingWorker,
    Movement,
    NodeRecord,
    PastLives,
    WorkerRecord,
    WorkerState,
)
from elasticps.daemon.access import asking
from elasticps.daemon.block_map import BlockMap
from elasticps.daemon.http.answers import (
    ChildRow,
    ClusterRows,
    GoneNode,
    JobRow,
    JobsPage,
    LocalStatus,
    LocalWorker,
    NodeRow,
    NodesPage,
    VerdictRow,
    WorkerRow,
)
from elasticps.daemon.http.body import gone
from elasticps.daemon.http.checkpoints import newest_report
from elasticps.daemon.http.pages import JobsQuery, NodesQuery, page, without_old
from elasticps.daemon.node import Node
from elasticps.daemon.usage import usage
from elasticps.daemon.view import JobView
from elasticps.wire.control_messages import Progress

log = logging.getLogger(__name__)

LOCAL_TIMEOUT = aiohttp.ClientTimeout(total=1.0)
ASKED_AT_ONCE = 32
PAST_LIVES = 8
"""How many ended workers a job shows: each restart and each leaving is one, for ever."""


def local_status(node: Node) -> LocalStatus:
    children = tuple(
        ChildRow(
            name=child.name,
            pid=child.pid,
            state=child.state.value,
            restarts=child.restarts,
            last_exit=child.last_exit.reason if child.last_exit else None,
        )
        for child in node.supervisor.snapshot()
    )
    workers = tuple(
        LocalWorker(
            uid=life.uid, progress=life.progress, still_s=time.monotonic() - life.stepped_at
        )
        for life in node.workers.lives.values()
    )
    return LocalStatus(
        node=node.name,
        foreign_values=node.view.foreign_values,
        loads=tuple(
            msgspec.structs.replace(each.load, hot=())
            for each in node.servers.children.values()
            if each.load is not None
        ),
        usage=usage(),
        children=children,
        workers=workers,
    )


class ClusterStatus:
    """Builds the documents of the API."""

    def __init__(self, node: Node, client: aiohttp.ClientSession, block_map: BlockMap) -> None:
        self._node = node
        self._client = client
        self._map = block_map

    async def encoded(self) -> bytes:
        """``cluster`` as JSON, on one line."""
        return msgspec.json.encode(await self.cluster())

    async def cluster(self) -> ClusterRows:
        view = self._node.view
        locals_ = await self._locals(view.nodes.values())
        jobs = sorted(self._submitted(), key=lambda job: job.key)
        shown = without_old(jobs, _ended)
        return ClusterRows(
            cluster=self._node.config.cluster,
            version=version("elasticps"),
            leader=view.leader,
            nodes=tuple(self._node_row(view.nodes[name], locals_) for name in sorted(view.nodes)),
            jobs=tuple(
                self._job_row(job, job.spec, locals_) for job in shown if job.spec is not None
            ),
            ended_left_out=len(jobs) - len(shown),
        )

    async def nodes(self, asked: NodesQuery) -> NodesPage:
        records, more = page(
            self._node.view.nodes.values(),
            lambda record: str(record.node),
            after=asked.after,
            limit=asked.limit,
        )
        locals_ = await self._locals(records)
        rows = tuple(self._node_row(record, locals_) for record in records)
        return NodesPage(nodes=rows, next=more)

    async def jobs(self, asked: JobsQuery) -> JobsPage:
        locals_ = await self._locals(self._node.view.nodes.values())
        wanted = [job for job in self._submitted() if asked.takes(_state(job))]
        jobs, more = page(wanted, lambda job: int(job.key), after=asked.after, limit=asked.limit)
        rows = tuple(self._job_row(job, job.spec, locals_) for job in jobs if job.spec)
        return JobsPage(jobs=rows, next=more)

    async def node(self, name: NodeId) -> NodeRow | GoneNode:
        record = self._node.view.nodes.get(name)
        if record is None:
            return GoneNode(node=name)
        return self._node_row(record, await self._locals([record]))

    async def job(self, job: JobView) -> JobRow:
        """Raises NotFound where it is forgotten meanwhile."""
        locals_ = await self._locals(self._node.view.nodes.values())
        if job.spec is None:
            raise gone(job.name)
        return self._job_row(job, job.spec, locals_)

    def _submitted(self) -> list[JobView]:
        return [job for job in self._node.view.jobs.values() if job.spec is not None]

    def submitted(self, spec: JobSpec) -> JobRow:
        """A job in the moment of its submission; it has no key yet."""
        return self._job_row(JobView(spec.name, spec=spec), spec, {})

    async def progress_of(self, job: JobView) -> dict[str, Progress]:
        """What the job's workers say of themselves, by uid, as far as their nodes answer."""
        return _progress_of(job, await self._locals(self._node.view.nodes.values()))

    # -- asking the other daemons ---------------------------------------------------------------

    async def _locals(self, records: Collection[NodeRecord]) -> dict[NodeId, LocalStatus]:
        """The nodes' own words; a node that does not answer in a second is left out."""
        window = asyncio.Semaphore(ASKED_AT_ONCE)

        async def ask(record: NodeRecord) -> LocalStatus | None:
            if record.node == self._node.name:
                return local_status(self._node)
            async with window:
                return await self._ask(record)

        answers = await asyncio.gather(*(ask(record) for record in list(records)))
        return {answer.node: answer for answer in answers if answer is not None}

    async def _ask(self, record: NodeRecord) -> LocalStatus | None:
        try:
            url = f"{record.http}/api/v1/local"
            proof = asking(self._node.access, record)
            async with self._client.get(url, timeout=LOCAL_TIMEOUT, **proof) as response:
                return msgspec.json.decode(await response.read(), type=LocalStatus)
        except (aiohttp.ClientError, TimeoutError, msgspec.MsgspecError) as error:
            log.info("node=%s does not answer: %s", record.node, error)
            return None

    # -- rows -----------------------------------------------------------------------------------

    def _node_row(self, record: NodeRecord, locals_: Mapping[NodeId, LocalStatus]) -> NodeRow:
        view = self._node.view
        local = locals_.get(record.node)
        loads = local.loads if local else ()
        servers = {server.server for server in record.servers}
        leads, replicas = self._map.leads_and_holds(servers)
        return NodeRow(
            node=record.node,
            state=self.state(record.node, asked_to_leave=record.node in view.drains),
            leader=view.leader == record.node,
            http=record.http,
            incarnation=record.incarnation,
            machine=record.machine,
            zone=record.zone,
            labels=record.labels,
            weight=record.weight,
            version=record.version,
            leads=leads,
            replicas=replicas,
            bytes_held=sum(each.bytes_held for each in loads),
            bytes_per_s=sum(each.total.bytes_per_s for each in loads),
            usage=local.usage if local else None,
            workers=tuple(
                life.uid
                for job in view.active_jobs
                for life in job.running
                if life.record.node == record.node
            ),
            children=local.children if local else (),
            reachable=local is not None,
        )

    def state(
        self, node: NodeId, *, asked_to_leave: bool
    ) -> Literal["ready", "draining", "drained"]:
        if not asked_to_leave:
            return "ready"
        return "drained" if self._node.view.holds_nothing(node) else "draining"

    def _job_row(
        self, job: JobView, spec: JobSpec, locals_: Mapping[NodeId, LocalStatus]
    ) -> JobRow:
        progress = _progress_of(job, locals_)
        status = job.status
        newest = None
        if status is None or not status.state.final:  # whoever is still to stop has no say
            newest = max(progress.values(), key=lambda item: (item.round, -item.rank), default=None)
        leads = Counter(node_of(entry.primary) for entry in job.entries)
        alive = {server.server for server in self._node.view.servers}
        tallies = tallies_of(job, progress)
        return JobRow(
            job=job.name,
            key=job.key,
            state=_state(job).value,
            reason=_reason(job, progress, locals_),
            since_unix=(status and status.since_unix) or spec.submitted_unix,
            workers_asked=status.asked if status else None,
            workers_planned=sum(status.workers.values()) if status else 0,
            script=spec.argv[0],
            owner=spec.owner,
            strategy=spec.strategy,
            codec=spec.codec,
            replicas=spec.replicas,
            min_insync=spec.min_insync,
            consistency=spec.consistency.value,
            round=newest.round if newest else (status.round if status else None),
            metrics=_main_metrics(progress) or (status.metrics if status else {}),
            step_s=newest.step_s if newest else None,
            pushed_bytes=sum(each.pushed_bytes for each in tallies),
            gradient_bytes=sum(each.gradient_bytes for each in tallies),
            workers=tuple(_worker_row(life, progress.get(life.uid)) for life in shown_workers(job)),
            blocks=len(job.sizes),
            under_replicated=len(short_of_copies(job.entries, alive, spec.replicas)),
            blocks_by_node=dict(sorted(leads.items())),
            pending_moves=sum(bool(entry.learners) for entry in job.entries),
            movement=status.movement if status else Movement(),
            verdict=_verdict(status),
            failure=status.failure if status else None,
            checkpoint=newest_report(progress.values()),
            checkpoint_attempts=attempts(each.checkpoint_attempts for each in tallies),
            submitted_unix=spec.submitted_unix,
            ended_unix=status.ended_unix if status else None,
        )


def _state(job: JobView) -> JobState:
    return job.status.state if job.status else JobState.PENDING


def _ended(job: JobView) -> float | None:
    """When, in Unix seconds; None where it has not."""
    if job.status is None or not job.status.state.final:
        return None
    return job.status.ended_unix or 0.0


def _progress_of(job: JobView, locals_: Mapping[NodeId, LocalStatus]) -> dict[str, Progress]:
    return {
        worker.uid: worker.progress
        for local in locals_.values()
        for worker in local.workers
        if worker.progress is not None and worker.uid in job.workers
    }


def _no_status(job: JobView) -> str:
    unreadable = "its status in etcd cannot be read: it is left alone"
    return unreadable if "status" in job.damaged else "waiting for a leader"


def _still_of(job: JobView, locals_: Mapping[NodeId, LocalStatus]) -> list[float]:
    """For how long each of its workers has not taken a step, of those that are heard."""
    return [
        worker.still_s
        for local in locals_.values()
        for worker in local.workers
        if worker.uid in job.workers
    ]


def awaited_workers(
    job: JobView, progress: Mapping[str, Progress], locals_: Mapping[NodeId, LocalStatus]
) -> dict[str, int | None]:
    """Whom the others wait for, by the word of who leads the job's ledger: their ranks by uid."""
    loads = [load for local in locals_.values() for load in local.loads]
    rows = [row for load in loads for row in load.tally.jobs if row.job == job.key]
    late = {worker for row in rows for worker in row.holding.awaited}
    uids = [life.uid for life in job.running if life.worker in late]
    return {uid: progress[uid].rank if uid in progress else None for uid in uids}


def _reason(
    job: JobView, progress: dict[str, Progress], locals_: Mapping[NodeId, LocalStatus]
) -> str:
    """Why its state is what it is, whether it stands still, and what its workers wait for."""
    told = job.status.reason if job.status else _no_status(job)
    if job.model is not None and job.status and job.status.state is JobState.RUNNING:
        step_s = max((item.step_s for item in progress.values()), default=0.0)
        awaited = awaited_workers(job, progress, locals_)
        still = standing_still(job.name, _still_of(job, locals_), step_s, awaited)
        told = "; ".join(filter(None, (told, still)))
    waits = sorted({item.waits_for for item in progress.values() if item.waits_for})
    return "; ".join([told, *(f"waiting for another worker: {each}" for each in waits)])


def _lives(job: JobView) -> list[LivingWorker]:
    return sorted(job.workers.values(), key=lambda life: life.worker)


def shown_workers(job: JobView) -> list[LivingWorker]:
    """Those that live, and of those that have ended the last few."""
    past = [life for life in _lives(job) if life.record.state is not WorkerState.RUNNING]
    last = sorted(past, key=lambda life: life.revision)[-PAST_LIVES:]
    return sorted([*job.running, *last], key=lambda life: life.worker)


def _worker_row(life: LivingWorker, progress: Progress | None) -> WorkerRow:
    return WorkerRow(
        uid=life.uid,
        node=life.record.node,
        state=life.record.state.value,
        rank=progress.rank if progress else None,
        round=progress.round if progress else None,
        step_s=progress.step_s if progress else None,
        compute_s=progress.compute_s if progress else None,
        reason=life.record.reason,
        transport=progress.transport if progress else "",
    )


def _verdict(status: JobStatus | None) -> VerdictRow:
    if status is None:
        return VerdictRow()
    return VerdictRow(
        acknowledged=status.verdict.acknowledged,
        lost=status.verdict.lost,
        duplicated=status.verdict.duplicated,
        workers=status.audited,
        unaudited=status.unaudited,
    )


def tallies_of(
    job: JobView, progress: dict[str, Progress]
) -> Sequence[Progress | WorkerRecord | JobStatus | PastLives]:
    """What counts for all of the job's workers, together."""
    if job.status is not None and job.status.state.final:
        return [job.status]  # its workers' records go with its end
    past = job.status.past if job.status is not None else PastLives()
    return [past, *(progress.get(life.uid, life.record) for life in _lives(job))]


def _main_metrics(progress: dict[str, Progress]) -> dict[str, float | None]:
    """The logged numbers of the lowest rank that logged any."""
    logged = [item for item in progress.values() if item.metrics]
    return {**min(logged, key=lambda item: item.rank).metrics} if logged else {}
