"""What the frames of the data plane say beside their header and payload: the bounded msgpack
part, as typed structs. ``control_messages`` has those of the control channel.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from elasticps.core.audit import Tally
from elasticps.core.blocks import Hyperparameters
from elasticps.core.chosen import DEFAULT_CODEC
from elasticps.core.commands import Floor
from elasticps.core.ids import (
    Generation,
    Round,
    WorkerId,
)
from elasticps.core.replica import Applied, Commit, RoundOp
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import WireError


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
    xxh128: str


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
    xxh128: str
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


_encoder = msgspec.msgpack.Encoder()
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
