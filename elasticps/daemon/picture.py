"""The cluster at one moment: what can be held against a later one, and never changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from elasticps.core.ids import BlockId, JobKey, JobName, NodeId, ServerId, node_of
from elasticps.core.records import (
    DrainRecord,
    JobSpec,
    JobStatus,
    LivingWorker,
    MainNote,
    NodeRecord,
    WorkerState,
)
from elasticps.daemon.view import ClusterView, JobView, PlanPart


@dataclass(slots=True)
class Held:
    """How many replicas of each role, and the bytes of their blocks' values."""

    primary: int = 0
    backup: int = 0
    learner: int = 0
    bytes: int = 0

    @property
    def replicas(self) -> int:
        return self.primary + self.backup + self.learner

    def add(self, other: Held) -> None:
        self.primary += other.primary
        self.backup += other.backup
        self.learner += other.learner
        self.bytes += other.bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """One part of a plan, counted once: what each server holds, and how many blocks move."""

    part: PlanPart
    held: Mapping[ServerId, Held]
    moving: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobPicture:
    """``base`` is the plan as it was when nothing of the job moved last."""

    key: JobKey
    spec: JobSpec
    status: JobStatus | None
    sizes: Sequence[int]
    checkpoint_request: int
    workers: Mapping[str, LivingWorker]
    mains: Mapping[NodeId, MainNote]
    tallies: Mapping[int, Tally]
    base: Mapping[int, PlanPart]

    @property
    def active(self) -> bool:
        """Not ended."""
        return not (self.status and self.status.state.final)

    @property
    def moving(self) -> int:
        """The blocks that have a learner."""
        return sum(tally.moving for tally in self.tallies.values())

    @property
    def blocks(self) -> int:
        """The blocks that have a place."""
        return sum(len(tally.part.entries) for tally in self.tallies.values())

    def size_of(self, block: BlockId) -> int:
        """In bytes; 0 where the model cannot be read, or is another than the plan's."""
        return self.sizes[block] if block < len(self.sizes) else 0

    def held(self, server: ServerId) -> Held:
        total = Held()
        for tally in self.tallies.values():
            if server in tally.held:
                total.add(tally.held[server])
        return total

    def running(self, node: NodeId) -> int:
        """The workers that run on a node."""
        lives = (life.record for life in self.workers.values())
        return sum(each.node == node and each.state is WorkerState.RUNNING for each in lives)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """What ``take`` saw; of jobs, those that have been submitted."""

    revision: int = 0
    leader: NodeId | None = None
    nodes: Mapping[NodeId, NodeRecord] = field(default_factory=dict)
    drains: Mapping[NodeId, DrainRecord] = field(default_factory=dict)
    jobs: Mapping[JobName, JobPicture] = field(default_factory=dict)

    def servers(self) -> set[ServerId]:
        return {server.server for record in self.nodes.values() for server in record.servers}

    def load(self, node: NodeId) -> tuple[int, int]:
        """The replicas of a registered node's servers, and the workers that run on it."""
        record = self.nodes.get(node)
        servers = record.servers if record else ()
        replicas = sum(
            job.held(server.server).replicas for job in self.jobs.values() for server in servers
        )
        return replicas, sum(job.running(node) for job in self.jobs.values())


def take(view: ClusterView, before: Picture | None = None) -> Picture:
    """The view as it is now. What has not changed since ``before`` is not counted again."""
    known = before.jobs if before else {}
    return Picture(
        revision=view.revision,
        leader=view.leader,
        nodes=dict(view.nodes),
        drains=dict(view.drains),
        jobs={
            name: _job(job, job.spec, known.get(name))
            for name, job in view.jobs.items()
            if job.spec is not None
        },
    )


def _job(job: JobView, spec: JobSpec, before: JobPicture | None) -> JobPicture:
    if before is not None and before.key != job.key:
        before = None  # another one of the same name
    counted = before.tallies if before and before.sizes is job.sizes else {}
    tallies = {
        number: known
        if (known := counted.get(number)) is not None and known.part is part
        else _tally(part, job.sizes)
        for number, part in sorted(job.parts.items())
    }
    moves = any(tally.moving for tally in tallies.values())
    settled = before.base if before and moves else {}
    return JobPicture(
        key=job.key,
        spec=spec,
        status=job.status,
        sizes=job.sizes,
        checkpoint_request=job.checkpoint_request,
        workers=dict(job.workers),
        mains={
            node: report.main for node, report in job.reports.items() if report.main is not None
        },
        tallies=tallies,
        base={number: settled.get(number, tally.part) for number, tally in tallies.items()},
    )


def _tally(part: PlanPart, sizes: Sequence[int]) -> Tally:
    held: dict[ServerId, Held] = {}
    moving = 0

    def of(server: ServerId, size: int) -> Held:
        found = held.get(server)
        if found is None:
            found = held[server] = Held()
        found.bytes += size
        return found

    for entry in part.entries:
        size = sizes[entry.block] if entry.block < len(sizes) else 0
        of(entry.primary, size).primary += 1
        for server in entry.in_sync:
            of(server, size).backup += 1
        for server in entry.learners:
            of(server, size).learner += 1
        moving += bool(entry.learners)
    return Tally(part=part, held=held, moving=moving)


def by_node(tallies: Iterable[Tally]) -> dict[NodeId, Held]:
    """What each node holds of these parts."""
    nodes: dict[NodeId, Held] = {}
    for tally in tallies:
        for server, held in tally.held.items():
            nodes.setdefault(node_of(server), Held()).add(held)
    return nodes
