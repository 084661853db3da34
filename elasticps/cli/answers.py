"""What the HTTP API answers, as values. Fields that are not known here are ignored."""

from __future__ import annotations

from typing import Literal

import msgspec

from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.consistency import Guarantees
from elasticps.core.records import Attempts

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """A process that a daemon supervises."""

    name: str
    pid: int | None
    state: str
    restarts: int
    last_exit: str | None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's daemon: ``leads`` blocks are its to serve, ``replicas`` it has a copy of."""

    node: str
    state: str
    leader: bool
    http: str
    incarnation: str = ""
    machine: str
    zone: str
    labels: dict[str, str]
    weight: float
    version: str
    leads: int
    replicas: int
    bytes_held: int
    workers: tuple[str, ...]
    children: tuple[Child, ...]
    reachable: bool

    @property
    def idle(self) -> bool:
        """Holds no blocks and runs no workers."""
        return not self.replicas and not self.workers


class NodeState(msgspec.Struct, frozen=True, kw_only=True):
    """What a node that was asked something is now."""

    node: str
    state: str


class JobWorker(msgspec.Struct, frozen=True, kw_only=True):
    uid: str
    node: str
    state: str
    rank: int | None
    round: int | None
    reason: str


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """What migrations have cost a job so far."""

    blocks: int = 0
    value_bytes: int = 0
    snapshot_bytes: int = 0
    least_value_bytes: int = 0


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit of the job's pushes found, by the word of ``workers`` of its workers.

    ``unaudited`` others run, or have ended without: killed, failed, or gone with their node.
    """

    acknowledged: int
    lost: int
    duplicated: int
    workers: int = 0
    unaudited: int = 0

    @property
    def broken(self) -> bool:
        return bool(self.lost or self.duplicated)


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The first worker that failed, and its traceback."""

    node: str
    worker: str
    reason: str
    traceback: str


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A job's newest: ``request`` is the newest asked for that it answers, ``error`` why it failed.

    Where it failed, ``directory`` and ``round`` are those of the one before.
    """

    directory: str
    round: int
    request: int
    error: str


class CheckpointAsked(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    request: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job and how it is going. A metric that is not a number arrives as None.

    ``under_replicated`` counts the blocks with fewer copies than ``replicas``. Workers have pushed
    ``pushed_bytes`` for gradients that have ``gradient_bytes`` without the job's codec.
    """

    job: str
    state: str
    reason: str
    script: str
    strategy: str
    replicas: int
    min_insync: int = 1
    consistency: str = "sync"
    under_replicated: int = 0
    round: int | None
    metrics: dict[str, float | None]
    step_s: float | None
    codec: str = DEFAULT_CODEC
    pushed_bytes: int = 0
    gradient_bytes: int = 0
    workers: tuple[JobWorker, ...]
    blocks: int
    blocks_by_node: dict[str, int]
    pending_moves: int
    movement: Movement
    verdict: Verdict
    failure: Failure | None
    checkpoint: Checkpoint | None = None
    checkpoint_attempts: Attempts = Attempts()
    submitted_unix: float
    ended_unix: float | None

    @property
    def final(self) -> bool:
        return self.state in FINAL_STATES


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cluster as one daemon sees it."""

    cluster: str
    version: str
    leader: str | None
    nodes: tuple[Node, ...]
    jobs: tuple[Job, ...]


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[Node, ...]


class Jobs(msgspec.Struct, frozen=True, kw_only=True):
    jobs: tuple[Job, ...]


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """One block on its way to the node ``target``; no ``source``: there was no copy of it."""

    job: str
    block: int
    source: str | None
    target: str
    bytes: int


class Moves(msgspec.Struct, frozen=True, kw_only=True):
    """The moves that would balance the cluster, and those under way."""

    moves: tuple[Move, ...]
    bytes: int
    pending_moves: int


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One line that a worker wrote; the stream ``daemon`` is its daemon's word about it."""

    node: str
    worker: str
    stream: Literal["stdout", "stderr", "daemon"]
    text: str


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """What happened, as one daemon saw it; ``id`` is its place in that daemon's timeline."""

    id: str
    unix_s: float
    kind: str
    what: str
    node: str | None = None
    job: str | None = None
    severity: str = "info"


class Events(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a timeline; ``next`` is what to ask for what comes after."""

    events: tuple[Event, ...]
    next: str
    missed: bool = False


class Submission(Guarantees, frozen=True, kw_only=True, omit_defaults=True):
    """What is asked for with a new job; what has its default is left to the daemon."""

    argv: tuple[str, ...]
    cwd: str
    start_workers: int
    max_workers: int | None = None
    block_bytes: int | None = None
    audit: bool = False
    name: str | None = None
    env: dict[str, str] = msgspec.field(default_factory=dict)


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """An error as the API spells it; see ``ElasticError``."""

    what: str
    where: str | None = None
    field: str | None = None
    limit: str | None = None
    hint: str | None = None


class ErrorAnswer(msgspec.Struct, frozen=True, kw_only=True):
    error: ErrorBody
