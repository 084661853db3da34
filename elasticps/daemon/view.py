"""The cluster as etcd has it, mirrored in memory and typed: what every decision here reads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from elasticps.core.affinity import affinities
from elasticps.core.blocks import LEDGER_BYTES, Model, partition
from elasticps.core.ids import JobKey, JobName, NodeId, ServerId, WorkerId, node_of
from elasticps.core.plan import PART_BLOCKS, Entry, decode_part
from elasticps.core.records import (
    CaughtUpRow,
    DrainRecord,
    JobSpec,
    JobStatus,
    LivingWorker,
    NodeRecord,
    RecordType,
    ReportRecord,
    ScaleRecord,
    ServerRecord,
    WorkerRecord,
    WorkerState,
    decode,
)
from elasticps.core.sound import check_described, check_node, check_part, check_spec
from elasticps.errors import ElasticError, StoreError, UsageError
from elasticps.store import Batch, KeyKind, Keys, KeyValue, ParsedKey, Snapshot
from elasticps.wire.address import Address

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Item = TypeVar("Item")


@dataclass(slots=True)
class PlanPart:
    """One stored part of a plan and the revision that wrote it."""

    entries: tuple[Entry, ...]
    revision: int


@dataclass(slots=True)
class JobView:
    """All that is stored of one job.

    ``checkpoint_request`` is the revision at which a user asked for a checkpoint last, or 0.
    """

    name: JobName
    spec: JobSpec | None = None
    key: JobKey = JobKey(0)
    status: JobStatus | None = None
    status_revision: int = 0
    model: Model | None = None
    sizes: tuple[int, ...] = ()
    cancelled: bool = False
    checkpoint_request: int = 0
    scale: ScaleRecord | None = None
    parts: dict[int, PlanPart] = field(default_factory=dict)
    workers: dict[str, LivingWorker] = field(default_factory=dict)
    reports: dict[NodeId, ReportRecord] = field(default_factory=dict)
    foreign: set[ParsedKey] = field(default_factory=set)

    @property
    def active(self) -> bool:
        """Submitted, and not ended."""
        return self.spec is not None and not (self.status and self.status.state.final)

    @property
    def ended(self) -> bool:
        """Submitted, and known to have ended."""
        return self.spec is not None and self.status is not None and self.status.state.final

    @property
    def cleared(self) -> bool:
        """Nothing is left of what only a job that runs has."""
        return not (self.parts or self.reports or self.workers or self.scale)

    @property
    def damaged(self) -> list[str]:
        """Which of status, model and plan cannot be read, or were deleted: not to be made anew."""
        parts = -(-len(self.sizes) // PART_BLOCKS)
        kinds = {key.kind.value for key in self.foreign if key.part is None or key.part < parts}
        if self.sizes and self.parts and len(self.entries) != self._planned_blocks:
            kinds.add("plan")  # a part of it is too short or too long
        if self.status is not None and self.status.sites:  # it has been planned, part after part
            first_parts = range(max(self.parts, default=0) + 1)
            kinds |= {"plan" for part in first_parts if part not in self.parts}
        return sorted(kinds & {"status", "model", "plan"})

    @property
    def _planned_blocks(self) -> int:
        """How many entries the parts that are there must have together."""
        blocks = len(self.sizes)
        return sum(min(PART_BLOCKS, blocks - part * PART_BLOCKS) for part in self.parts)

    @property
    def entries(self) -> list[Entry]:
        """The plan, in block order; empty until the leader has made it."""
        return [entry for part in sorted(self.parts) for entry in self.parts[part].entries]

    @property
    def caught_up(self) -> list[CaughtUpRow]:
        return [row for report in self.reports.values() for row in report.rows]

    @property
    def wishes(self) -> Mapping[int, Sequence[NodeId]]:
        """By block, the nodes that wish to lead it."""
        told = {node: report.wishes for node, report in self.reports.items() if report.wishes}
        return affinities(told, len(self.sizes))

    @property
    def running(self) -> list[LivingWorker]:
        """Workers that live, oldest first."""
        lives = self.workers.values()
        return sorted(
            (life for life in lives if life.record.state is WorkerState.RUNNING),
            key=lambda life: life.worker,
        )


class ClusterView:
    """The mirror. ``apply`` is its only mutator; a value that is not ours counts as absent."""

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.revision = 0
        self.leader: NodeId | None = None
        self.nodes: dict[NodeId, NodeRecord] = {}
        self.drains: dict[NodeId, DrainRecord] = {}
        self.jobs: dict[JobName, JobView] = {}
        self.foreign_values = 0

    # -- what others ask ------------------------------------------------------------------------

    @property
    def active_jobs(self) -> list[JobView]:
        return [job for job in self.jobs.values() if job.active]

    @property
    def servers(self) -> list[ServerRecord]:
        """Every registered shard server, in node order."""
        return [server for node in sorted(self.nodes) for server in self.nodes[node].servers]

    @property
    def schedulable(self) -> list[NodeRecord]:
        """The nodes that may be given blocks and workers."""
        return [self.nodes[node] for node in sorted(self.nodes) if node not in self.drains]

    def holds_nothing(self, node: NodeId) -> bool:
        """True when no active job has a replica or a worker on ``node``, registered or not."""
        return not any(
            "plan" in job.damaged
            or any(node_of(server) == node for entry in job.entries for server in entry.servers)
            or any(life.record.node == node for life in job.running)
            for job in self.active_jobs
        )

    # -- the mirror -----------------------------------------------------------------------------

    def apply(self, batch: Batch) -> None:
        """Take a snapshot, which replaces everything, or changes."""
        if isinstance(batch, Snapshot):
            self.leader = None
            self.nodes, self.drains, self.jobs = {}, {}, {}
            self._apply_all((item.key, item) for item in batch.items)
        else:
            self._apply_all((event.key, event.kv) for event in batch.events)
        self.revision = batch.revision

    def _apply_all(self, changes: Iterable[tuple[str, KeyValue | None]]) -> None:
        for key, value in changes:
            parsed = self.keys.parse(key)
            if parsed is None:
                if value is not None:
                    self.foreign_values += 1
                    log.warning("etcd holds a key that is not ours: %s", key)
                continue
            try:
                self._apply(parsed, value)
            except (StoreError, UsageError) as error:
                self.foreign_values += 1
                log.error("etcd holds a value that is not ours: %s", _at(key, error))
                self._apply(parsed, None)
                if parsed.job is not None:
                    name = JobName(parsed.job)
                    self.jobs.setdefault(name, JobView(name)).foreign.add(parsed)

    def _apply(self, parsed: ParsedKey, value: KeyValue | None) -> None:
        if parsed.job is not None:
            self._apply_job(JobName(parsed.job), parsed, value)
        elif parsed.kind is KeyKind.LEADER:
            self.leader = None if value is None else NodeId(value.value.decode(errors="replace"))
        elif parsed.kind is KeyKind.NODE and parsed.node is not None:
            node = NodeId(parsed.node)
            _keep(self.nodes, node, _node(node, value) if value else None)
        elif parsed.kind is KeyKind.DRAIN and parsed.node is not None:
            _keep(self.drains, NodeId(parsed.node), _decoded(value, DrainRecord))

    def _apply_job(self, name: JobName, parsed: ParsedKey, value: KeyValue | None) -> None:
        job = self.jobs.setdefault(name, JobView(name))
        job.foreign.discard(parsed)
        match parsed.kind:
            case KeyKind.JOB_SPEC:
                job.spec = _checked_spec(value)
                job.key = JobKey(value.create_revision if value else 0)
            case KeyKind.JOB_STATUS:
                job.status_revision = value.mod_revision if value else 0
                job.status = _decoded(value, JobStatus)
            case KeyKind.JOB_MODEL:
                job.model = _checked_model(value)
                job.sizes = _sizes(job.model)
            case KeyKind.PLAN_PART:
                _keep(job.parts, parsed.part or 0, _plan_part(parsed, value) if value else None)
            case KeyKind.WORKER:
                _keep(job.workers, parsed.worker or "", _life(parsed, value) if value else None)
            case KeyKind.REPORT:
                _keep(job.reports, NodeId(parsed.node or ""), _decoded(value, ReportRecord))
            case _:
                _apply_wish(job, parsed.kind, value)
        known = (job.spec, job.status, job.model, job.parts, job.workers, job.reports)
        wishes = job.cancelled or job.checkpoint_request or job.scale
        if not (any(known) or wishes or job.foreign):
            del self.jobs[name]


def _apply_wish(job: JobView, kind: KeyKind, value: KeyValue | None) -> None:
    """What a user asks of a job."""
    match kind:
        case KeyKind.JOB_CANCEL:
            job.cancelled = value is not None
        case KeyKind.JOB_CHECKPOINT:
            job.checkpoint_request = value.mod_revision if value else 0
        case KeyKind.JOB_SCALE:
            job.scale = _decoded(value, ScaleRecord)


def _keep(items: dict[Key, Item], key: Key, item: Item | None) -> None:
    if item is None:
        items.pop(key, None)
    else:
        items[key] = item


def _decoded(value: KeyValue | None, record_type: type[RecordType]) -> RecordType | None:
    return None if value is None else decode(value.value, record_type, value.key)


def _at(key: str, error: ElasticError) -> str:
    """The error, with the key that it is about."""
    return str(error) if error.where else f"{key}: {error}"


def _node(node: NodeId, value: KeyValue) -> NodeRecord:
    record = decode(value.value, NodeRecord, value.key)
    check_node(record, node)
    for server in record.servers:
        for address in (server.tcp, server.unix):
            Address.parse(address)
    return record


def _checked_spec(value: KeyValue | None) -> JobSpec | None:
    spec = _decoded(value, JobSpec)
    if spec is not None:
        check_spec(spec)
    return spec


def _checked_model(value: KeyValue | None) -> Model | None:
    model = _decoded(value, Model)
    if model is not None:
        check_described(model)
    return model


def _sizes(model: Model | None) -> tuple[int, ...]:
    """Bytes by block, the ledger first."""
    if model is None:
        return ()
    return (LEDGER_BYTES, *(block.nbytes for block in partition(model)))


def _plan_part(parsed: ParsedKey, value: KeyValue) -> PlanPart:
    try:
        entries = decode_part(value.value, value.mod_revision)
    except StoreError as error:
        raise StoreError(error.what, where=value.key) from error
    check_part(parsed.part or 0, entries, value.mod_revision)
    return PlanPart(entries, value.mod_revision)


def _life(parsed: ParsedKey, value: KeyValue) -> LivingWorker:
    return LivingWorker(
        worker=WorkerId(value.create_revision),
        uid=parsed.worker or "",
        record=decode(value.value, WorkerRecord, value.key),
        revision=value.mod_revision,
    )


def local_servers(view: ClusterView, machine: str) -> frozenset[ServerId]:
    """The servers that a Unix socket on this machine reaches."""
    return frozenset(
        server.server
        for record in view.nodes.values()
        if record.machine == machine
        for server in record.servers
    )
