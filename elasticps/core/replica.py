"""One replica of one block of parameters: staging, whole rounds, and the dedup table.

A worker's gradient for a round is staged at the primary, remembered by worker. The ledger's commit
of the round, carried by the workers' pulls, names the contributors; the first pull that proves it
makes the primary apply the staged sum, once.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import msgspec

from elasticps.core.audit import Tally, mix
from elasticps.core.ids import Generation, Round, Seq, ServerId, WorkerId
from elasticps.core.replication import Replication


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """A dedup table's row: the newest push of one worker, and the tally of all of them."""

    seq: Seq
    tally: Tally


class Commit(msgspec.Struct, frozen=True, array_like=True):
    """The ledger's word that a round is whole, and whose gradients count in it, in rank order."""

    round: Round
    generation: Generation
    contributors: tuple[WorkerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Push:
    worker: WorkerId
    seq: Seq
    round: Round
    generation: Generation


class PushOutcome(Enum):
    STAGE = "stage"
    """Keep the gradient and acknowledge it as staged."""
    REPEATED = "repeated"
    """Seen before, staged or applied: acknowledge it, keep nothing."""
    STALE_GENERATION = "stale-generation"
    """The set of workers has changed: the worker asks the ledger, and pushes again."""
    OUT_OF_TURN = "out-of-turn"
    """Not the next round of this block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundOp:
    """The op that one committed round is to a block: what every replica applies."""

    round: Round
    generation: Generation
    pushes: tuple[tuple[WorkerId, Seq], ...]

    @property
    def digest(self) -> int:
        digest = mix(self.round)
        for worker, seq in self.pushes:
            digest = mix(mix(digest ^ worker) ^ seq)
        return digest


class PullOutcome(Enum):
    VALUE = "value"
    """Answer with the value."""
    APPLY = "apply"
    """Apply the returned op first, then answer with the value."""
    NOT_STAGED = "not-staged"
    """This primary has not got the asking worker's gradient: push again, then ask again."""
    WAIT = "wait"
    """Ask again when other contributors have pushed again."""
    EMPTY = "empty"
    """The block has no initial value yet."""
    GAP = "gap"
    """The commit is not the block's next: a round was skipped, which must not be."""


@dataclass(slots=True)
class Replica:
    """The state of one block on one server, without its numbers: those are the shell's."""

    me: ServerId
    replication: Replication = field(init=False)
    round: Round = Round(0)
    initialized: bool = False
    applied: dict[WorkerId, Applied] = field(default_factory=dict)
    generation: Generation = Generation(0)
    staged: dict[WorkerId, Seq] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.replication = Replication(me=self.me)

    def initialize(self, digest: int) -> int:
        """Take an initial value; a second initializer may replace it until a round is applied."""
        assert self.round == 0
        self.initialized = True
        self.drop_staged()
        return self.replication.record(digest)

    def push(self, push: Push) -> PushOutcome:
        """Decide on a gradient; STAGE remembers it, and a newer generation drops all staged."""
        seen = self.applied.get(push.worker)
        if seen is not None and push.seq <= seen.seq:
            return PushOutcome.REPEATED
        if not self.initialized or push.round != self.round + 1:
            return PushOutcome.OUT_OF_TURN
        if push.generation < self.generation:
            return PushOutcome.STALE_GENERATION
        if push.generation > self.generation:
            self.drop_staged()
            self.generation = push.generation
        if push.seq <= self.staged.get(push.worker, -1):
            return PushOutcome.REPEATED
        self.staged[push.worker] = push.seq
        return PushOutcome.STAGE

    def pull(self, worker: WorkerId, commit: Commit | None) -> tuple[PullOutcome, RoundOp | None]:
        """Decide on a read that proves ``commit`` (None: before the first round)."""
        if not self.initialized:
            return PullOutcome.EMPTY, None
        if commit is None or commit.round <= self.round:
            return PullOutcome.VALUE, None
        if commit.round != self.round + 1:
            return PullOutcome.GAP, None
        staged = self.staged if commit.generation == self.generation else {}
        if all(contributor in staged for contributor in commit.contributors):
            pushes = tuple(
                (contributor, staged[contributor]) for contributor in commit.contributors
            )
            op = RoundOp(round=commit.round, generation=commit.generation, pushes=pushes)
            return PullOutcome.APPLY, op
        if worker in commit.contributors and worker not in staged:
            return PullOutcome.NOT_STAGED, None
        return PullOutcome.WAIT, None

    def apply(self, op: RoundOp, *, following: bool = False) -> int:
        """Count ``op`` as applied, here as primary or (``following``) as backup."""
        self.round = op.round
        self.generation = max(self.generation, op.generation)
        for worker, seq in op.pushes:
            tally = self.applied[worker].tally if worker in self.applied else Tally()
            self.applied[worker] = Applied(seq, tally.plus(seq))
        self.drop_staged()
        advance = self.replication.follow if following else self.replication.record
        return advance(op.digest)

    def drop_staged(self) -> None:
        self.staged.clear()
