"""The message catalogue: the bounded msgpack part of each frame, as typed structs.

Data-plane frames carry the numbers in the header and these structs for what is not fixed; control
frames (daemon to child and back, on one machine) carry one ``Control`` message and no payload.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from elasticps.core.affinity import MAX_SPANS, Span
from elasticps.core.audit import Tally, Verdict
from elasticps.core.blocks import Hyperparameters, Model
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.commands import Floor
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
from elasticps.core.replica import Applied, Commit, RoundOp
from elasticps.core.spans import Span as TimeSpan
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import WireError
from elasticps.wire.tallies import ServerTally

# -- data plane ---------------------------------------------------------------------------------


class HelloMeta(msgspec.Struct, frozen=True):
    """First on every data connection: which cluster and who calls (a worker or a server).

    ``token`` is the caller's pass, where the cluster has certificates.
    """

    cluster: str
    caller: str
    token: bytes = b""


class Place(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Bytes of a region of the sender, in the place of a payload.

    ``kept``: a gradient's bytes stay as they are until the sender has pulled the block as of its
    round; else until the push is answered.
    """

    region: int
    offset: int
    nbytes: int
    kept: bool = False


class RegionsOffer(msgspec.Struct, frozen=True, array_like=True):
    """Answers SHARE: where to show regions, and the token to show with them."""

    path: str
    token: bytes


class RegionsShown(msgspec.Struct, frozen=True, array_like=True):
    """Passed with one descriptor for each number that is not 0, in this order."""

    token: bytes
    gradients: int
    values: int


class PushMeta(msgspec.Struct, frozen=True, array_like=True):
    """``weight``: how many samples the gradient is the mean of. ``pushers``: how many workers
    contribute to the round. ``commit``: the proof of the round before. ``rank``: the sender's.
    ``codec``: what the payload is coded with, the job's. ``place``: where the gradient lies, if it
    is no payload."""

    generation: Generation
    weight: float
    hyper: Hyperparameters
    pushers: int
    commit: Commit | None
    rank: int = 0
    codec: str = DEFAULT_CODEC
    place: Place | None = None


class MeasureMeta(msgspec.Struct, frozen=True, array_like=True):
    """The Euclidean norm of a block's part of the round's mean gradient."""

    norm: float


class PullMeta(msgspec.Struct, frozen=True, array_like=True):
    """A read, and what it must not be older than: the last round, or each worker's pushes.

    ``place``: where a value is to be written, instead of being the answer's payload. ``holds``: the
    digest of the value that the worker has, which the answer may be the difference from."""

    commit: Commit | None = None
    floor: Floor = {}
    place: Place | None = None
    holds: int | None = None


class EarlierFile(msgspec.Struct, frozen=True, array_like=True):
    """What an earlier checkpoint, in the directory named ``checkpoint``, has of a block."""

    checkpoint: str
    name: str
    sha256: str


class SaveMeta(msgspec.Struct, frozen=True, array_like=True):
    """Write a block into the directory named ``draft`` beside the job's checkpoints.

    ``exact``: as it is after the round that ``proof`` proves, and after no later one; what asks for
    a later one waits until it is copied. ``written``: to be answered when it is, else at once.
    A block that is as in the ``earlier`` file is not written again.
    """

    proof: PullMeta
    draft: str
    exact: bool
    written: bool
    earlier: EarlierFile | None = None


class SavedMeta(msgspec.Struct, frozen=True, array_like=True):
    """A block's file, and what of its state is not in it. ``version`` counts the block's ops."""

    name: str
    size: int
    sha256: str
    round: Round
    version: int
    scalars: dict[str, float | int | bool | None] = {}


class ValueMeta(msgspec.Struct, frozen=True, array_like=True):
    """Answers PULL. ``makes``: the payload is no value, but the coded difference between what the
    worker holds and the value of this digest; without a payload the two are the same."""

    version: int
    round: Round
    makes: int | None = None


class TensorMeta(msgspec.Struct, frozen=True, array_like=True):
    """One tensor within a payload, in order."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class StateMeta(msgspec.Struct, frozen=True):
    """A block's numbers as one payload: the value first, then the optimizer's tensors.

    ``scalars`` is the optimizer state that is not a tensor; ``hyper`` the options last used;
    ``round`` the one it is as of.
    """

    tensors: tuple[TensorMeta, ...]
    round: Round = Round(0)
    scalars: dict[str, float | int | bool | None] = {}
    hyper: Hyperparameters = {}


class Prepared(msgspec.Struct, frozen=True, array_like=True):
    """A round that is prepared and not applied yet: its mean gradient has ``nbytes``."""

    op: RoundOp
    hyper: Hyperparameters
    nbytes: int


class SnapshotMeta(msgspec.Struct, frozen=True):
    """Everything a learner needs of a block: in the payload the state, then the prepared gradient.

    ``ledger`` is the state of block 0 instead.
    """

    version: int
    history: int
    round: Round = Round(0)
    generation: Generation = Generation(0)
    initialized: bool = False
    applied: dict[WorkerId, Applied] = {}
    state: StateMeta | None = None
    prepared: Prepared | None = None
    ledger: bytes = b""


class OpMeta(msgspec.Struct, frozen=True):
    """One replicated op, which makes ``version``.

    It is a round (its mean gradient is the payload), which is prepared, or applied ``at_once``; or
    an initial value; or a ledger command. ``commit`` proves the round before.
    """

    version: int
    op: RoundOp | None = None
    hyper: Hyperparameters = {}
    at_once: bool = False
    commit: Commit | None = None
    initial: StateMeta | None = None
    command: bytes = b""


class VersionMeta(msgspec.Struct, frozen=True, array_like=True):
    version: int


class AuditMeta(msgspec.Struct, frozen=True, array_like=True):
    """What a block has applied of the asking worker."""

    applied: Tally


class FetchMeta(msgspec.Struct, frozen=True, array_like=True):
    """Which tensor of a peer's shelf, and which bytes of it. The round is in the header."""

    key: str
    start: int
    stop: int


class ShelfMeta(msgspec.Struct, frozen=True, array_like=True):
    """The tensor that a fetch has found."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


class PeerNote(msgspec.Struct, frozen=True, array_like=True):
    """What a worker writes on the bulletin: where its peers find it. ``machine``: of ``unix``.

    ``certificate`` (PEM) is what its TCP listener proves itself by, where it speaks TLS.
    """

    tcp: str
    unix: str
    machine: str
    certificate: bytes = b""


class RefusalMeta(msgspec.Struct, frozen=True):
    reason: str


# -- control channel ----------------------------------------------------------------------------


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
    """What became of the newest checkpoint; ``request`` is the newest that was answered."""

    directory: str = ""
    round: Round = Round(0)
    request: int = 0
    error: str = ""


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

_encoder = msgspec.msgpack.Encoder()
_control = msgspec.msgpack.Decoder(Control)
_decoders: dict[type[msgspec.Struct], msgspec.msgpack.Decoder[msgspec.Struct]] = {}

MetaType = TypeVar("MetaType", bound=msgspec.Struct)


def encode(message: msgspec.Struct) -> bytes:
    return _encoder.encode(message)


def decode(meta: bytes, message_type: type[MetaType]) -> MetaType:
    """Raises WireError, naming the offending part, when ``meta`` is not such a message."""
    decoder = _decoders.get(message_type)
    if decoder is None:
        decoder = _decoders[message_type] = msgspec.msgpack.Decoder(message_type)
    try:
        return decoder.decode(meta)  # type: ignore[return-value]
    except UNDECODABLE as error:
        raise WireError(f"not a {message_type.__name__}: {error}", field="meta") from error


def decode_control(meta: bytes) -> Control:
    """Raises WireError when ``meta`` is no control message."""
    try:
        message: Control = _control.decode(meta)
    except UNDECODABLE as error:
        raise WireError(f"not a control message: {error}", field="meta") from error
    return message
