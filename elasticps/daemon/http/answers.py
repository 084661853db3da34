"""What the API answers, one struct a document. ``cli.answers`` reads them."""

from __future__ import annotations

from typing import Literal

import msgspec

from elasticps.checkpoint.listing import Listed
from elasticps.core.ids import BlockId, JobKey, JobName, NodeId, Round
from elasticps.core.records import Attempts, Failure, Movement
from elasticps.daemon.block_map import BlockRow, NodeBlocks
from elasticps.daemon.series import Point
from elasticps.daemon.usage import Usage
from elasticps.security.tokens import Role
from elasticps.wire.control_messages import CheckpointReport, Progress, ServerLoad


class LocalWorker(msgspec.Struct, frozen=True, kw_only=True):
    """``still_s``: for how long it has not taken a step, or since its start has taken none."""

    uid: str
    progress: Progress | None
    still_s: float = 0.0


class ChildRow(msgspec.Struct, frozen=True, kw_only=True):
    """A process that a daemon supervises."""

    name: str
    pid: int | None
    state: str
    restarts: int
    last_exit: str | None


class LocalStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What only a node's own daemon knows: ``GET /api/v1/local``.

    ``foreign_values`` counts the keys and values in etcd that it could not read; ``loads`` are what
    its shard servers do, of those that live.
    """

    node: NodeId
    foreign_values: int
    loads: tuple[ServerLoad, ...]
    usage: Usage | None = None
    children: tuple[ChildRow, ...]
    workers: tuple[LocalWorker, ...]


class NodeRow(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's daemon: ``leads`` blocks are its to serve, ``replicas`` it has a copy of.

    ``workers`` are the uids of those that run. One that is not ``reachable`` has not answered
    within a second: ``bytes_held`` and ``children`` are its own word, and empty then.
    """

    node: NodeId
    state: Literal["ready", "draining", "drained"]
    leader: bool
    http: str
    incarnation: str
    machine: str
    zone: str
    labels: dict[str, str]
    weight: float
    version: str
    leads: int
    replicas: int
    bytes_held: int
    bytes_per_s: float
    usage: Usage | None
    workers: tuple[str, ...]
    children: tuple[ChildRow, ...]
    reachable: bool


class GoneNode(msgspec.Struct, frozen=True, kw_only=True):
    """A node that is no member any more."""

    node: NodeId
    state: Literal["gone"] = "gone"


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One life of a worker; no ``rank`` and ``round`` where it has not told, or has ended.

    ``transport`` is what its pushes and pulls go over, and why not shared memory.
    """

    uid: str
    node: NodeId
    state: str
    rank: int | None
    round: Round | None
    step_s: float | None
    compute_s: float | None
    reason: str
    transport: str = ""


class VerdictRow(msgspec.Struct, frozen=True, kw_only=True):
    """What an audit of the job's pushes found, by the word of ``workers`` of its workers.

    ``unaudited`` others run, or have ended without.
    """

    acknowledged: int = 0
    lost: int = 0
    duplicated: int = 0
    workers: int = 0
    unaudited: int = 0


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """A job and how it is going.

    ``key`` is its own alone: its name may be given again once it is forgotten. ``workers`` are
    those that live and the 8 that ended last. A metric that is not a finite number is null.
    ``under_replicated`` counts the blocks with fewer copies than ``replicas``. Workers have pushed
    ``pushed_bytes`` for gradients that have ``gradient_bytes`` without the job's codec. Times are
    seconds, ``_unix`` ones since 1970.
    """

    job: JobName
    key: JobKey
    state: str
    reason: str
    since_unix: float
    workers_asked: int | None
    workers_planned: int
    script: str
    owner: str
    strategy: str
    codec: str
    replicas: int
    min_insync: int
    consistency: str
    round: int | None
    metrics: dict[str, float | None]
    step_s: float | None
    pushed_bytes: int
    gradient_bytes: int
    workers: tuple[WorkerRow, ...]
    blocks: int
    under_replicated: int
    blocks_by_node: dict[NodeId, int]
    pending_moves: int
    movement: Movement
    verdict: VerdictRow
    failure: Failure | None
    checkpoint: CheckpointReport | None
    checkpoint_attempts: Attempts
    submitted_unix: float
    ended_unix: float | None


class ClusterRows(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cluster as one daemon sees it.

    Of the jobs that have ended only the newest; ``ended_left_out`` counts the others.
    """

    cluster: str
    version: str
    leader: NodeId | None
    nodes: tuple[NodeRow, ...]
    jobs: tuple[JobRow, ...]
    ended_left_out: int = 0


class NodesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Nodes by name. ``next`` is what to ask for with ``after``; null where these are the last."""

    nodes: tuple[NodeRow, ...]
    next: str | None


class JobsPage(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs as they were submitted, the oldest first. ``next`` as with nodes."""

    jobs: tuple[JobRow, ...]
    next: str | None


class MoveRow(msgspec.Struct, frozen=True, kw_only=True):
    """One block on its way to the node ``target``; no ``source``: there was no copy of it."""

    job: JobName
    block: int
    source: NodeId | None
    target: NodeId
    bytes: int


class MovesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The moves that would balance the cluster, those under way included."""

    moves: tuple[MoveRow, ...]
    bytes: int
    pending_moves: int


class CheckpointAsked(msgspec.Struct, frozen=True, kw_only=True):
    """``request`` is what the job's ``checkpoint.request`` reaches once it is there, or failed."""

    job: JobName
    request: int


class Forgotten(msgspec.Struct, frozen=True, kw_only=True):
    """A job that is no more. What it wrote to ``checkpoint_dir`` stays; empty: it had none."""

    job: JobName
    checkpoint_dir: str


class LogLine(msgspec.Struct, frozen=True, kw_only=True):
    """One line that a worker wrote; no ``worker``: the node's word about lines left out.

    ``rank`` is the worker's, if it ended the last one that it had.
    """

    node: NodeId
    worker: str
    stream: str
    text: str
    unix_s: float | None = None
    rank: int | None = None


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """``role`` is what the caller may do, ``name`` whose jobs are its own; null: all are."""

    role: Role
    name: str | None


class BlocksAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """What each node holds, of a job or of all: ``blocks`` in all."""

    nodes: list[NodeBlocks]
    blocks: int


class BlockRows(BlocksAnswer, frozen=True, kw_only=True):
    """With a page of the job's blocks; ``next`` as with nodes."""

    rows: list[BlockRow]
    next: BlockId | None


class SeriesAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """A job's curves, the oldest point first: the newest in full, older ones further apart."""

    job: JobName
    points: list[Point]


class CheckpointList(msgspec.Struct, frozen=True, kw_only=True):
    """A job's checkpoints, the newest first, as ``node`` sees ``directory``.

    ``problem`` says why it sees none, where it cannot.
    """

    job: JobName
    directory: str
    node: NodeId
    checkpoints: tuple[Listed, ...] = ()
    problem: str = ""
