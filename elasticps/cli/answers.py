"""What the HTTP API answers, as values. Fields that are not known here are ignored."""

from __future__ import annotations

from typing import Literal

import msgspec

from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.consistency import Guarantees
from elasticps.core.records import Attempts
from elasticps.core.step_profile import StepProfile

FINAL_STATES = ("SUCCEEDED", "FAILED", "CANCELLED")


class Child(msgspec.Struct, frozen=True, kw_only=True):
    """A process that a daemon supervises."""

    name: str
    pid: int | None
    state: str
    restarts: int
    last_exit: str | None


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """A node's machine as it counts: what passed between two looks is the difference."""

    at_s: float
    cpus: int
    load_1m: float | None = None
    cpu_busy_s: float | None = None
    memory_used_bytes: int | None = None
    memory_bytes: int | None = None
    received_bytes: int | None = None
    sent_bytes: int | None = None


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's daemon: ``leads`` blocks are its to serve, ``replicas`` it has a copy of.

    ``bytes_per_s`` are pushed to and pulled from its shard server.
    """

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
    bytes_per_s: float = 0.0
    usage: Usage | None = None
    workers: tuple[str, ...]
    children: tuple[Child, ...]
    reachable: bool

    @property
    def idle(self) -> bool:
        """Holds no blocks and runs no workers."""
        return not self.replicas and not self.workers


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """A job that the cluster knows no more, and where its checkpoints stay, if it wrote any."""

    job: str
    checkpoint_dir: str


class ForgottenJobs(msgspec.Struct, frozen=True, kw_only=True):
    """Those of one command, in its order."""

    jobs: tuple[Forgotten, ...]


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
    step_s: float | None = None
    compute_s: float | None = None
    reason: str
    transport: str = ""


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

    Where it failed, ``directory`` and ``round`` are those of the one before. ``waits_for``: why one
    that was asked for is not begun yet.
    """

    directory: str
    round: int
    request: int
    error: str
    waits_for: str = ""


class CheckpointAsked(msgspec.Struct, frozen=True, kw_only=True):
    job: str
    request: int


class StoredCheckpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One in a directory; ``problem`` says why no job can go on from it."""

    path: str
    round: int
    nbytes: int
    created_unix: float | None = None
    job: str = ""
    problem: str = ""


class StoredCheckpoints(msgspec.Struct, frozen=True, kw_only=True):
    """What ``node``, or this machine where that is empty, finds in ``directory``, newest first."""

    directory: str
    node: str = ""
    job: str = ""
    checkpoints: tuple[StoredCheckpoint, ...] = ()
    problem: str = ""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A job and how it is going. A metric that is not a number arrives as None.

    ``key`` is its own alone: its name may be given again once it is forgotten. ``reason`` says why
    its state is what it is, since ``since_unix``. ``workers_asked`` is what a scale asked for,
    ``workers_planned`` how many there will be on the nodes that there are. ``under_replicated``
    counts the blocks with fewer copies than ``replicas``. Workers have pushed ``pushed_bytes`` for
    gradients that have ``gradient_bytes`` without the job's codec.
    """

    job: str
    key: int = 0
    state: str
    reason: str
    since_unix: float = 0.0
    workers_asked: int | None = None
    workers_planned: int = 0
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
    ended_left_out: int = 0


class Nodes(msgspec.Struct, frozen=True, kw_only=True):
    nodes: tuple[Node, ...]


class NodesPage(Nodes, frozen=True, kw_only=True):
    """Some of the nodes; those after ``next`` are still to be asked for."""

    next: str | None = None


class Jobs(msgspec.Struct, frozen=True, kw_only=True):
    jobs: tuple[Job, ...]


class JobsPage(Jobs, frozen=True, kw_only=True):
    """Some of the jobs; those after ``next`` are still to be asked for."""

    next: str | None = None


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
    """One line that a worker wrote; the stream ``daemon`` is its daemon's word about it.

    ``unix_s`` is when, by the node's clock; 0 where it is not known. ``rank`` is the worker's, if
    it ended the last one that it had.
    """

    node: str
    worker: str
    stream: Literal["stdout", "stderr", "daemon"]
    text: str
    unix_s: float = 0.0
    rank: int | None = None


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


class Profiled(msgspec.Struct, frozen=True, kw_only=True):
    """What a recording says; ``missing``: nodes that did not answer, and why."""

    profile: StepProfile
    missing: dict[str, str]
