"""What the promises rest on, taken out one at a time: the checkers must notice each.

A part is taken out for the length of a ``with`` block, by putting another function in its place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import msgspec

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import Answers, Vote
from elasticps.core.ids import PlanEpoch, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.plan import Entry
from elasticps.core.planner import _Steps
from elasticps.core.records import CaughtUpRow
from elasticps.core.replica import Commit, Push, PushOutcome, Replica, RoundOp, Settled
from elasticps.core.replication import Action, Answer, Check, Replication, Role
from elasticps.sim.block import Block
from elasticps.sim.calls import Asked, Caller
from elasticps.sim.checkers import Checkers
from elasticps.sim.disk import Disk
from elasticps.sim.group import Answered
from elasticps.sim.hosting import Hosted
from elasticps.sim.messages import BlockSnapshot, Fingerprint, Kind, Request, Saved, Status
from elasticps.sim.saving import Save
from elasticps.sim.server import Server

Place = tuple[type, str, Any]


def _no_epoch_check() -> list[Place]:
    """A replica takes requests and ops of any epoch, as long as its role fits."""

    def check(self: Replication, epoch: PlanEpoch) -> Check:
        return Check.OK if self.role is Role.PRIMARY else Check.UNKNOWN

    def check_stream(self: Replication, epoch: PlanEpoch) -> Check:
        return Check.OK if self.role in (Role.LEARNER, Role.IN_SYNC) else Check.UNKNOWN

    return [(Replication, "check", check), (Replication, "_check_stream", check_stream)]


def _no_dedup() -> list[Place]:
    """A push is not looked up in the dedup table."""
    original = Replica.push

    def push(self: Replica, push: Push) -> PushOutcome:
        applied, self.applied = self.applied, {}
        try:
            return original(self, push)
        finally:
            self.applied = applied

    return [(Replica, "push", push)]


def _no_wait_for_backups() -> list[Place]:
    """A primary answers as soon as it has applied an op itself."""

    def released(self: Replication) -> list[Action]:
        self.durable = self.version
        waiting, self._waiting = self._waiting, []
        return [Answer(request, Check.OK) for _, request in waiting]

    return [(Replication, "_released", released)]


def _no_dedup_in_snapshots() -> list[Place]:
    """A snapshot brings the value, and not whose pushes are in it."""
    original = Block.install

    def install(self: Block, snapshot: BlockSnapshot) -> None:
        original(self, snapshot)
        self.replica.applied = {}

    return [(Block, "install", install), _blind_to_snapshots()]


def _no_prepared_in_snapshots() -> list[Place]:
    """A snapshot leaves out the round that is prepared and not applied yet."""
    original = Block.install

    def install(self: Block, snapshot: BlockSnapshot) -> None:
        original(self, replace(snapshot, prepared=None, gradient=()))

    return [(Block, "install", install), _blind_to_snapshots()]


def _blind_to_snapshots() -> Place:
    """The harm is to be seen, not the missing part itself: replicas are not compared."""

    def followed(self: Checkers, hosted: Hosted, version: int, fingerprint: Fingerprint) -> None:
        return None

    return (Checkers, "followed", followed)


def _no_lease_deadline() -> list[Place]:
    """A server goes on serving after its node's lease has run out."""
    return [(Server, "lease_expired", property(lambda self: False))]


def _unpromised_learners() -> list[Place]:
    """The leader takes a learner for a holder before its primary has promised that it is one."""

    def rows(self: _Steps, entry: Entry) -> list[CaughtUpRow]:
        return [CaughtUpRow(entry.block, each, entry.epoch, 1) for each in entry.learners]

    return [(_Steps, "_rows", rows)]


def _no_generation_check() -> list[Place]:
    """A vote and a push of an older generation count in the present one."""
    original, push = Ledger._vote, Replica.push

    def vote(self: Ledger, vote: Vote) -> Answers:
        return original(self, msgspec.structs.replace(vote, generation=self.generation))

    def push_any(self: Replica, pushed: Push) -> PushOutcome:
        return push(
            self,
            msgspec.structs.replace(pushed, generation=max(pushed.generation, self.generation)),
        )

    return [(Ledger, "_vote", vote), (Replica, "push", push_any)]


def _no_staleness_check() -> list[Place]:
    """The ledger lets every worker go on, however far ahead it is."""
    return [(ClockLedger, "_in_bound", lambda self, worker: True)]


def _no_floor() -> list[Place]:
    """A read is answered by a primary that lacks pushes which are known to be acknowledged."""
    return [(Replica, "has", lambda self, floor: True)]


def _too_early_values() -> list[Place]:
    """A read gets the value of when it is answered, with ops that may be lost yet."""
    return [(Block, "as_of_request", False)]


def _no_base_of_rounds_apart() -> list[Place]:
    """A replica that is shown a round without pushes does not look at the one before it."""
    original = Replica.settle

    def settle(self: Replica, commit: Commit | None) -> Settled:
        if commit is not None and commit.apart and commit.round > self.round:
            return Settled.SKIP
        return original(self, commit)

    return [(Replica, "settle", settle)]


def _no_scale_in_proofs() -> list[Place]:
    """A primary's op proves the round before to its backups, and not how that was scaled."""
    original = Replica.apply_prepared

    def apply_prepared(self: Replica, scale: float) -> RoundOp:
        op = original(self, scale)
        assert self.last is not None
        self.last = msgspec.structs.replace(self.last, scale=1.0)
        return op

    return [(Replica, "apply_prepared", apply_prepared)]


def _no_scale_after_a_round() -> list[Place]:
    """The commit of a round without pushes forgets how the one before it was scaled."""
    original = Ledger._commit_of

    def commit_of(self: Ledger, contributors: tuple[WorkerId, ...]) -> Commit:
        commit = original(self, contributors)
        return commit if commit.contributors else msgspec.structs.replace(commit, scale=1.0)

    return [(Ledger, "_commit_of", commit_of)]


def _no_asking_for_the_rest() -> list[Place]:
    """A worker takes all blocks of a group that was answered for pushed, refused or not."""
    original = Caller._settle

    def settle(self: Caller, asked: Asked, answers: Iterable[Answered]) -> None:
        if asked.calls[0].kind is Kind.PUSH:
            answers = [(Status.OK, body or 0.0) for _, body in answers]
        original(self, asked, answers)

    return [(Caller, "_settle", settle)]


def _no_return_of_reserved() -> list[Place]:
    """What was reserved for a worker that is gone is nobody's."""

    def release(self: ClockLedger, worker: WorkerId) -> None:
        self.reserved.pop(worker, None)

    return [(ClockLedger, "_release", release)]


def _no_checkpoint_holds() -> list[Place]:
    """A block goes on to the next round before it is copied for a checkpoint."""
    return [(Save, "holds", lambda self, round_: False)]


def _too_early_copies() -> list[Place]:
    """A block is said to be written before what was copied is durable."""

    def answer(self: Block, request: Request, saved: Saved) -> None:
        request.answer(Status.OK, saved)

    return [(Block, "_answer_saved", answer)]


def _no_directory_fsync() -> list[Place]:
    """A checkpoint's names are left to the page cache; the content of its files is not."""
    return [(Disk, "sync_directory", lambda self, path: None)]


ABLATIONS: dict[str, Callable[[], list[Place]]] = {
    "epoch-check": _no_epoch_check,
    "dedup-table": _no_dedup,
    "wait-for-backups": _no_wait_for_backups,
    "dedup-in-snapshots": _no_dedup_in_snapshots,
    "lease-deadline": _no_lease_deadline,
    "promised-learners": _unpromised_learners,
    "prepared-in-snapshots": _no_prepared_in_snapshots,
    "generation-check": _no_generation_check,
    "staleness-at-admission": _no_staleness_check,
    "floor-at-read": _no_floor,
    "durable-reads": _too_early_values,
    "base-of-rounds-apart": _no_base_of_rounds_apart,
    "scale-in-proofs": _no_scale_in_proofs,
    "scale-after-a-round": _no_scale_after_a_round,
    "asking-for-the-rest": _no_asking_for_the_rest,
    "return-of-reserved": _no_return_of_reserved,
    "checkpoint-holds": _no_checkpoint_holds,
    "durable-copies": _too_early_copies,
    "directory-fsync": _no_directory_fsync,
}


@contextmanager
def without(name: str) -> Iterator[None]:
    """Take one part out, by its name in ``ABLATIONS``."""
    places = ABLATIONS[name]()
    originals = [(owner, attribute, owner.__dict__[attribute]) for owner, attribute, _ in places]
    try:
        for owner, attribute, other in places:
            setattr(owner, attribute, other)
        yield
    finally:
        for owner, attribute, original in originals:
            setattr(owner, attribute, original)
