"""What is stored in etcd, one struct a key, and how a value that is not ours is refused."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

import msgspec

from elasticps.core.affinity import Span
from elasticps.core.audit import Verdict
from elasticps.core.blocks import DEFAULT_BLOCK_BYTES
from elasticps.core.consistency import Guarantees
from elasticps.core.ids import BlockId, JobName, NodeId, PlanEpoch, ServerId, WorkerId
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import StoreError


class ServerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One life of a shard server and where it listens (wire addresses)."""

    server: ServerId
    tcp: str
    unix: str


class ServerEnd(msgspec.Struct, frozen=True, kw_only=True):
    """What a plugin did in a shard server when that died: ``within`` is in words."""

    server: ServerId
    within: str


class NodeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A registered daemon. ``machine`` tells whether a Unix socket of it can be reached.

    ``server_ends``: of each place of a shard server the newest end within a plugin, if any.
    """

    node: NodeId
    incarnation: str
    machine: str
    http: str
    version: str
    weight: float = 1.0
    zone: str = ""
    labels: dict[str, str] = {}
    worker_slots: int = 1
    servers: tuple[ServerRecord, ...] = ()
    server_ends: tuple[ServerEnd, ...] = ()


class DrainRecord(msgspec.Struct, frozen=True, kw_only=True):
    """An operator's or a leaving daemon's wish. ``stay``: the daemon goes on, holding nothing.

    ``restart``: it ends in a way that has it started again.
    """

    stay: bool = False
    restart: bool = False


class JobSpec(Guarantees, frozen=True, kw_only=True):
    """What was submitted; never changed afterwards.

    ``identity`` is random: no two jobs of any clusters have the same. ``owner`` names the token
    that it was submitted with, where one was needed.
    """

    name: JobName
    identity: str = ""
    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str] = msgspec.field(default_factory=dict)
    start_workers: int = 1
    max_workers: int = 1024
    block_bytes: int = DEFAULT_BLOCK_BYTES
    audit: bool = False
    submitted_unix: float = 0.0
    owner: str = ""


class ScaleRecord(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers a job is to have from now on, in place of its spec's ``max_workers``.

    ``ranks`` are the workers of the moment in rank order, as far as they had told: who leaves first
    where there are to be fewer is the last of them.
    """

    workers: int
    ranks: tuple[WorkerId, ...] = ()


class JobState(Enum):
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def final(self) -> bool:
        return self in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """Whose fault a job's end is: the first worker that failed, and its traceback."""

    node: NodeId
    worker: str
    reason: str
    traceback: str = ""


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """What migrations have cost a job so far.

    ``snapshot_bytes`` is what crossed the wire (values and optimizer state); ``value_bytes`` the
    blocks' own size; ``least_value_bytes`` what a perfectly divisible plan would have moved.
    """

    blocks: int = 0
    value_bytes: int = 0
    snapshot_bytes: int = 0
    least_value_bytes: int = 0


class Attempts(msgspec.Struct, frozen=True, kw_only=True):
    """How often a checkpoint was to be made, how often that failed, and why the last time."""

    made: int = 0
    failed: int = 0
    error: str = ""

    def plus(self, other: Attempts) -> Attempts:
        """Both together, ``other`` being the later ones."""
        return Attempts(
            made=self.made + other.made,
            failed=self.failed + other.failed,
            error=other.error or self.error,
        )

    def __str__(self) -> str:
        """One line for a user; empty where none has failed."""
        if not self.failed:
            return ""
        return f"{self.failed} of {self.made + self.failed} checkpoints failed: {self.error}"


class PastLives(msgspec.Struct, frozen=True, kw_only=True):
    """What is counted of so many ``lives`` of workers; ``audited`` of them gave a verdict."""

    lives: int = 0
    verdict: Verdict = Verdict()
    audited: int = 0
    pushed_bytes: int = 0
    gradient_bytes: int = 0
    checkpoint_attempts: Attempts = Attempts()


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Written by the leader alone. ``reason`` says why the state is what it is.

    ``since_unix``: since when that is why. ``asked`` is the number of workers that a scale asked
    for, as far as it is heeded. ``started``: it has had ``start_workers`` once. ``running`` are the
    workers known to run; of those ``vanished`` have gone with their nodes, without a record of
    their end. ``last_broken_off`` is the etcd revision by which a worker had ended otherwise than
    in order last. Of an audit's workers ``audited`` have given their verdicts and ``unaudited``
    have not.
    ``round`` and ``metrics`` are the last ones, written at the job's end. ``pushed_bytes``,
    ``gradient_bytes`` and ``checkpoint_attempts`` are those of workers that have ended. ``past`` is
    the part of these sums, and of the audit's, that is of workers whose records are deleted.
    """

    state: JobState
    reason: str
    since_unix: float = 0.0
    workers: dict[NodeId, int] = {}
    asked: int | None = None
    sites: tuple[ServerId, ...] = ()
    movement: Movement = Movement()
    verdict: Verdict = Verdict()
    audited: int = 0
    unaudited: int = 0
    started: bool = False
    running: tuple[WorkerId, ...] = ()
    vanished: int = 0
    last_broken_off: int = 0
    round: int | None = None
    metrics: dict[str, float | None] = {}
    pushed_bytes: int = 0
    gradient_bytes: int = 0
    checkpoint_attempts: Attempts = Attempts()
    past: PastLives = PastLives()
    failure: Failure | None = None
    ended_unix: float | None = None


class WorkerState(Enum):
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    LEFT = "left"
    FAILED = "failed"
    KILLED = "killed"


class WorkerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One life of a worker; the revision that created its key is its WorkerId.

    A metric that is no finite number is None: JSON has no other word for it. ``pushed_bytes`` were
    sent for gradients of ``gradient_bytes``.
    """

    node: NodeId
    state: WorkerState = WorkerState.RUNNING
    reason: str = ""
    traceback: str = ""
    verdict: Verdict | None = None
    round: int = 0
    metrics: dict[str, float | None] = {}
    pushed_bytes: int = 0
    gradient_bytes: int = 0
    checkpoint_attempts: Attempts = Attempts()


class CaughtUpRow(msgspec.Struct, frozen=True, array_like=True):
    """A primary's promise: ``learner`` holds all of ``block`` and is waited for since ``epoch``."""

    block: BlockId
    learner: ServerId
    epoch: PlanEpoch
    snapshot_bytes: int


class MainNote(msgspec.Struct, frozen=True, kw_only=True):
    """Which of a node's workers is its job's main one, and what became of its newest checkpoint.

    Where that failed, ``directory`` and ``round`` are those of the one before.
    """

    worker: str
    directory: str = ""
    round: int = 0
    error: str = ""


class ReportRecord(msgspec.Struct, frozen=True):
    """What a node says of a job: all promises of its servers, what its workers want led there in
    ``wishes``, and ``main`` where a worker of it is the job's main one.
    """

    rows: tuple[CaughtUpRow, ...]
    wishes: tuple[Span, ...] = ()
    main: MainNote | None = None


RecordType = TypeVar("RecordType", bound=msgspec.Struct)


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.json.encode(record)


def decode(value: bytes, record_type: type[RecordType], key: str) -> RecordType:
    """Raises StoreError, naming key and field, when ``value`` is not such a record."""
    try:
        return msgspec.json.decode(value, type=record_type)
    except UNDECODABLE as error:
        raise StoreError(f"not a {record_type.__name__}: {error}", where=key) from error


class LivingWorker(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's key as the cluster sees it; ``revision`` is that of its record's last write."""

    worker: WorkerId
    uid: str
    record: WorkerRecord
    revision: int
