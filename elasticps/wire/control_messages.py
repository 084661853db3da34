"""The control channel, daemon to child and back on one machine: each frame carries one ``Control``
message and no payload.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from elasticps.core.affinity import MAX_SPANS, Span
from elasticps.core.audit import Verdict
from elasticps.core.blocks import Model
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.consistency import Consistency, NonFinite
from elasticps.core.ids import (
    BlockId,
    Generation,
    JobKey,
    JobName,
    NodeId,
    PlanEpoch,
    Round,
    ServerId,
    WorkerId,
)
from elasticps.core.lending import DYNAMIC
from elasticps.core.proposal import Load
from elasticps.core.records import Attempts, CaughtUpRow, ServerRecord
from elasticps.core.spans import Span as TimeSpan
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import WireError
from elasticps.wire.tallies import ServerTally


class PlanRow(msgspec.Struct, frozen=True, array_like=True):
    """A plan entry on its way to a child."""

    block: BlockId
    primary: ServerId
    in_sync: tuple[ServerId, ...]
    learners: tuple[ServerId, ...]
    epoch: PlanEpoch
    fresh: bool
    since: PlanEpoch = PlanEpoch(0)


class JobInfo(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """To a child: a job exists. ``model`` is None until its first worker has described it.

    ``identity`` is what no other job of any cluster has. ``checkpoint_request`` is the number of
    the newest checkpoint that a user asked for. ``codec`` is what gradients are coded with on their
    way. ``refusal`` says why a shard server must not load the job's optimizer, which did not do
    what it must when the daemon tried it.
    """

    job: JobKey
    name: JobName
    identity: str = ""
    start_workers: int
    strategy: str
    model: Model | None
    consistency: Consistency = Consistency.SYNC
    staleness: int = 0
    backup_workers: int = 0
    data_policy: str = DYNAMIC
    min_insync: int = 1
    refusal: str = ""
    checkpoint_dir: str = ""
    checkpoint_every: int = 0
    checkpoint_keep: int = 3
    checkpoint_request: int = 0
    resume: str = ""
    resume_reset_optimizer: bool = False
    codec: str = DEFAULT_CODEC
    nonfinite: NonFinite = NonFinite.APPLY


class PlanUpdate(msgspec.Struct, frozen=True, tag=True):
    job: JobKey
    rows: tuple[PlanRow, ...]


class Servers(msgspec.Struct, frozen=True, tag=True):
    """Where the living shard servers listen; replaces what was known. ``local``: same machine."""

    servers: tuple[ServerRecord, ...]
    local: frozenset[ServerId] = frozenset()


class ServeUntil(msgspec.Struct, frozen=True, tag=True):
    """The node's lease as a CLOCK_MONOTONIC deadline: past it a shard server refuses to serve."""

    deadline: float


class AliveWorkers(msgspec.Struct, frozen=True, tag=True):
    """To the server that leads the ledger: the job's living workers as etcd has them."""

    job: JobKey
    workers: tuple[WorkerId, ...]
    revision: int


class DropJob(msgspec.Struct, frozen=True, tag=True):
    job: JobKey


class Stop(msgspec.Struct, frozen=True, tag=True):
    """Leave now. ``reason`` is for the log."""

    reason: str


class Retire(msgspec.Struct, frozen=True, tag=True):
    """To a worker: finish the round under way, then leave the job."""

    reason: str


class ServerHello(msgspec.Struct, frozen=True, tag=True):
    """From a shard server: it listens, and who it is."""

    record: ServerRecord


class Promises(msgspec.Struct, frozen=True, tag=True):
    """From a shard server: all learners of a job's blocks that it holds in sync now."""

    job: JobKey
    rows: tuple[CaughtUpRow, ...]


class HotBlock(msgspec.Struct, frozen=True, array_like=True):
    """What a block costs the server that leads it."""

    job: JobKey
    block: BlockId
    load: Load


class ServerLoad(msgspec.Struct, frozen=True, tag=True):
    """From a shard server, at most once a second: what it holds and has done.

    ``total`` is what all blocks cost it, of any role; ``hot`` those that it leads which cost most;
    ``tally`` what its daemon's metrics are made of. ``wire_errors`` counts connections that it
    closed for what they sent.
    """

    blocks: int
    bytes_held: int
    pushes: int
    rounds: int
    total: Load = Load()
    hot: tuple[HotBlock, ...] = ()
    wire_errors: int = 0
    tally: ServerTally = ServerTally()


class MakePlugins(msgspec.Struct, frozen=True, tag=True):
    """To a shard server: can a job's strategy and codec be made with their options?"""

    strategy: str
    codec: str


class PluginsMade(msgspec.Struct, frozen=True, tag=True):
    """From a shard server: they can, or ``what`` is wrong, in which ``field`` of the job."""

    strategy: str
    codec: str
    what: str = ""
    field: str = ""
    limit: str = ""


class WorkerHello(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the uid that its environment gave it."""

    uid: str


class Access(msgspec.Struct, frozen=True, tag=True):
    """To a worker, again and again: its pass, and the authorities (PEM) that servers prove
    themselves by. ``plain_all_reduce``: sums may cross the network, for gloo encrypts nothing."""

    token: bytes
    ca: bytes
    plain_all_reduce: bool


class Welcome(msgspec.Struct, frozen=True, tag=True):
    """To a worker: who it is. ``access`` where the cluster has certificates. ``shared_memory``:
    whether the servers of its machine may be given its memory."""

    worker: WorkerId
    job: JobKey
    node: NodeId
    cluster: str
    audit: bool
    block_bytes: int
    access: Access | None = None
    shared_memory: bool = True


class Describe(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the job's model. The first one counts; the rest must be equal."""

    model: Model


class Rejected(msgspec.Struct, frozen=True, tag=True):
    """To a worker: its last request cannot be granted, and why."""

    reason: str


class CheckpointReport(msgspec.Struct, frozen=True):
    """What became of the newest checkpoint; ``request`` is the newest that was answered.

    ``waits_for``: why one that was asked for is not begun yet, for a user to read.
    """

    directory: str = ""
    round: Round = Round(0)
    request: int = 0
    error: str = ""
    waits_for: str = ""


class Progress(msgspec.Struct, frozen=True, tag=True):
    """From a worker, a few times a second: where it is.

    ``step_s`` is what its last step took, ``compute_s`` the part of it that its script took: a
    straggler is told by that, for in step all take as long as the slowest. A metric that is no
    finite number is None once it has been JSON.
    ``pushed_bytes`` were sent for gradients that have ``gradient_bytes`` in their own dtype.
    ``waits_for``: what it cannot go on without, for a user to read. ``transport``: what its pushes
    and pulls go over, and why not shared memory. ``peer_sent`` and ``peer_received`` are bytes to
    and from other workers, by transport.
    """

    round: Round
    generation: Generation
    rank: int
    world: int
    metrics: dict[str, float | None] = {}
    step_s: float = 0.0
    compute_s: float = 0.0
    pushed_bytes: int = 0
    gradient_bytes: int = 0
    checkpoint: CheckpointReport | None = None
    checkpoint_attempts: Attempts = Attempts()
    waits_for: str = ""
    transport: str = ""
    peer_sent: dict[str, int] = {}
    peer_received: dict[str, int] = {}


class Prefer(msgspec.Struct, frozen=True, tag=True):
    """From a worker: the blocks that it would have led on its own node, instead of those before."""

    blocks: Annotated[tuple[Span, ...], msgspec.Meta(max_length=MAX_SPANS)]


class RecordSpans(msgspec.Struct, frozen=True, tag=True):
    """To a child: record spans of the job, of so many of a worker's steps, the newest ``most``.

    It ends by itself after ``seconds``. With 0 steps: hand in what there is, now.
    """

    job: JobKey
    steps: int = 0
    seconds: float = 0.0
    most: int = 0


class RecordedSpans(msgspec.Struct, frozen=True, tag=True):
    """From a child: what it has recorded, in several messages. ``left_out``: for want of room."""

    job: JobKey
    spans: tuple[TimeSpan, ...]
    left_out: int
    last: bool


class Finished(msgspec.Struct, frozen=True, tag=True):
    """From a worker: how its life ended. ``left``: it was asked to retire."""

    left: bool
    verdict: Verdict | None = None


Control = (
    JobInfo
    | PlanUpdate
    | Servers
    | ServeUntil
    | AliveWorkers
    | DropJob
    | Stop
    | Retire
    | ServerHello
    | Promises
    | ServerLoad
    | MakePlugins
    | PluginsMade
    | WorkerHello
    | Access
    | Welcome
    | Describe
    | Rejected
    | Progress
    | Prefer
    | RecordSpans
    | RecordedSpans
    | Finished
)

_control = msgspec.msgpack.Decoder(Control)


def decode_control(meta: bytes) -> Control:
    """Raises WireError when ``meta`` is no control message."""
    try:
        message: Control = _control.decode(meta)
    except UNDECODABLE as error:
        raise WireError(f"not a control message: {error}", field="meta") from error
    return message
