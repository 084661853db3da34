"""One replica of one block of parameters: staging, whole rounds, and the dedup table.

In synchronous rounds a worker's gradient is *staged* at the primary. When all that count are there
the round is *prepared*: one op, their mean, which every replica holds before a push is answered.
The ledger's commit of the round, carried by the workers' requests, lets a replica apply what it has
prepared: that is no op, for every replica has what it takes. In the other modes a push is an op of
its own and is applied at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache

import msgspec

from elasticps.core.audit import Tally, mix
from elasticps.core.ids import Generation, Round, Seq, ServerId, WorkerId
from elasticps.core.replication import Replication


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """A dedup table's row: the newest push of one worker, and the tally of all of them."""

    seq: Seq
    tally: Tally


class Commit(msgspec.Struct, frozen=True, array_like=True):
    """The ledger's word that a round is whole, and whose gradients count in it, in rank order.

    ``apart``: its workers exchanged among themselves and pushed nothing. ``base`` is then the last
    round that they pushed for, None where there is none. ``scale`` is what the mean gradient of the
    newest round with pushes, this or an earlier one, is multiplied by before it is applied.
    """

    round: Round
    generation: Generation
    contributors: tuple[WorkerId, ...]
    apart: bool = False
    base: Commit | None = None
    scale: float = 1.0


class Push(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """``pushers``: how many workers contribute to the round in this generation."""

    worker: WorkerId
    seq: Seq
    round: Round
    generation: Generation
    pushers: int


class PushOutcome(Enum):
    STAGE = "stage"
    """Keep the gradient; it is answered when its round is prepared."""
    PREPARE = "prepare"
    """The same, and it was the last that was missing: prepare the round."""
    APPLY = "apply"
    """Apply the gradient now, as an op of its own, and answer when that is durable."""
    HELD = "held"
    """Staged before, and the round is not prepared yet: answer it with the others."""
    REPEATED = "repeated"
    """Prepared or applied before: keep nothing, answer when that is durable."""
    STALE_GENERATION = "stale-generation"
    """The set of workers has changed: the worker asks the ledger, and pushes again."""
    OUT_OF_TURN = "out-of-turn"
    """Not the next round of this block."""


class RoundOp(msgspec.Struct, frozen=True, array_like=True):
    """Whose pushes one op counts: those of a prepared round, or the one that is applied at once."""

    round: Round
    generation: Generation
    pushes: tuple[tuple[WorkerId, Seq], ...]

    @property
    def workers(self) -> tuple[WorkerId, ...]:
        return tuple(worker for worker, _ in self.pushes)

    @property
    def digest(self) -> int:
        return _digest(self)


@lru_cache(maxsize=64)
def _digest(op: RoundOp) -> int:
    """Remembered, for the blocks of a model have the same op one after the other."""
    digest = mix(mix(op.round) ^ op.generation)
    for worker, seq in op.pushes:
        digest = mix(mix(digest ^ worker) ^ seq)
    return digest


class Settled(Enum):
    """What a commit that a request proves asks of this replica."""

    DONE = "done"
    """The round was applied before, or there is none."""
    APPLY = "apply"
    """Apply the prepared round now, scaled as the commit says."""
    PREPARE_EMPTY = "prepare-empty"
    """Nobody contributed: prepare a round without pushes."""
    SKIP = "skip"
    """Nobody pushed for it: count it."""
    MISSING = "missing"
    """What was committed is not prepared here: this replica has been left behind."""


@dataclass(slots=True)
class Replica:
    """The state of one block on one server, without its numbers: those are the shell's.

    ``in_rounds``: pushes are staged and counted by whole rounds; else each is applied at once.
    """

    me: ServerId
    in_rounds: bool = True
    min_insync: int = 1
    replication: Replication = field(init=False)
    round: Round = Round(0)
    initialized: bool = False
    applied: dict[WorkerId, Applied] = field(default_factory=dict)
    generation: Generation = Generation(0)
    staged: dict[WorkerId, Seq] = field(default_factory=dict)
    prepared: RoundOp | None = None
    last: Commit | None = None
    """The newest round that was applied here; the next op proves it to the backups."""

    def __post_init__(self) -> None:
        self.replication = Replication(me=self.me, min_insync=self.min_insync)

    # -- the primary's side ---------------------------------------------------------------------

    @property
    def untrained(self) -> bool:
        """No push has reached this block yet: it may still be given another initial value."""
        return not (self.applied or self.staged or self.prepared)

    def initialize(self, round_: Round, digest: int) -> int:
        """Take an initial value, as of ``round_``; returns the block's new version."""
        assert self.untrained
        self.initialized, self.round = True, round_
        return self.replication.record(digest)

    def push(self, push: Push) -> PushOutcome:
        """Decide on a gradient; STAGE and PREPARE remember it. A newer generation drops the rest.

        The push's own proof of the round before must have been settled.
        """
        seen = self.applied.get(push.worker)
        if seen is not None and push.seq <= seen.seq:
            return PushOutcome.REPEATED
        if not self.initialized:
            return PushOutcome.OUT_OF_TURN
        return self._stage(push) if self.in_rounds else PushOutcome.APPLY

    def _stage(self, push: Push) -> PushOutcome:
        if push.round != self.round + 1:
            return PushOutcome.OUT_OF_TURN
        if push.generation < self.generation:
            return PushOutcome.STALE_GENERATION
        if push.generation > self.generation:
            self.drop_staged()
            self.generation = push.generation
        if self._is_prepared(push.round, push.generation):
            assert self.prepared is not None
            known = (push.worker, push.seq) in self.prepared.pushes
            return PushOutcome.REPEATED if known else PushOutcome.OUT_OF_TURN
        newest = self.staged.get(push.worker, -1)
        if push.seq <= newest:
            return PushOutcome.HELD if push.seq == newest else PushOutcome.OUT_OF_TURN
        self.staged[push.worker] = push.seq
        whole = len(self.staged) >= push.pushers
        return PushOutcome.PREPARE if whole else PushOutcome.STAGE

    def _is_prepared(self, round_: Round, generation: Generation) -> bool:
        prepared = self.prepared
        return prepared is not None and (prepared.round, prepared.generation) == (
            round_,
            generation,
        )

    def staged_round(self) -> RoundOp:
        """The op that all that is staged makes, in the order of the workers' ids."""
        return RoundOp(Round(self.round + 1), self.generation, tuple(sorted(self.staged.items())))

    def empty_round(self, commit: Commit) -> RoundOp:
        """The op of a round to which nobody contributed: the one before those without pushes."""
        if commit.apart:
            assert commit.base is not None
            commit = commit.base
        return RoundOp(commit.round, commit.generation, ())

    def prepare(self, op: RoundOp, *, following: bool = False) -> int:
        """Hold ``op`` until it is committed, here as primary or (``following``) as backup."""
        self.prepared = op
        self.generation = max(self.generation, op.generation)
        self.drop_staged()
        return self._count(op, following)

    def update(self, op: RoundOp, *, following: bool = False) -> int:
        """Count a push that was applied at once."""
        self._tally(op)
        return self._count(op, following)

    def _count(self, op: RoundOp, following: bool) -> int:
        advance = self.replication.follow if following else self.replication.record
        return advance(op.digest)

    # -- both sides -----------------------------------------------------------------------------

    def settle(self, commit: Commit | None) -> Settled:
        """What does a proof that ``commit`` was made (None: no round yet) ask for next?

        Ask again when that is done: it takes up to four steps until DONE or MISSING.
        """
        if commit is None or commit.round <= self.round:
            return Settled.DONE
        if commit.apart:
            before = self.settle(commit.base)
            return Settled.SKIP if before is Settled.DONE else before
        if self.prepared is None or not self._is_prepared(commit.round, commit.generation):
            return self._settle_unprepared(commit)
        whole = set(self.prepared.workers) == set(commit.contributors)
        return Settled.APPLY if whole else Settled.MISSING

    def _settle_unprepared(self, commit: Commit) -> Settled:
        """A round that was committed without contributors is prepared by whoever hears of it."""
        if commit.contributors or not self.initialized:
            return Settled.MISSING
        if self.prepared is not None and commit.round == self.prepared.round + 1:
            # Who voted for it had read the round before: that one is what is prepared.
            return Settled.APPLY
        return Settled.PREPARE_EMPTY if commit.round == self.round + 1 else Settled.MISSING

    def apply_prepared(self, scale: float) -> RoundOp:
        """The prepared round has been committed, and the shell has applied it, scaled so."""
        op = self.prepared
        assert op is not None
        self.prepared = None
        self.round = op.round
        self.last = Commit(op.round, op.generation, op.workers, scale=scale)
        self._tally(op)
        self.drop_staged()
        return op

    def skip(self, commit: Commit) -> None:
        """The rounds up to ``commit``'s asked nothing of this block; what it holds is void."""
        self.prepared = None
        self.round, self.last = commit.round, commit
        self.drop_staged()

    def _tally(self, op: RoundOp) -> None:
        for worker, seq in op.pushes:
            tally = self.applied[worker].tally if worker in self.applied else Tally()
            self.applied[worker] = Applied(seq, tally.plus(seq))

    def has(self, floor: Mapping[WorkerId, Seq]) -> bool:
        """Has this replica applied each worker's pushes at least up to the one in ``floor``?"""
        nothing = Applied(Seq(-1), Tally())
        return all(self.applied.get(worker, nothing).seq >= seq for worker, seq in floor.items())

    def drop_staged(self) -> None:
        self.staged.clear()
