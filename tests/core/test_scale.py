"""What a round's mean gradient is scaled by: one number, which every replica is told."""

from __future__ import annotations

import math

import msgspec
import pytest

from elasticps.core.commands import Committed, Initialized, Join, Observe, Register, Vote
from elasticps.core.ids import BlockId, Generation, PlanEpoch, Round, Seq, ServerId, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.plan import Entry
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit, Replica, RoundOp, Settled

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)
DATA = DataSpec(size=100, batch_size=6, epochs=1, seed=0)


def ledger_of(*workers: WorkerId) -> Ledger:
    """Its members read DATA; generation 2."""
    ledger = Ledger(start_workers=len(workers))
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    for worker in workers:
        ledger.apply(Register(worker, DATA))
    return ledger


def vote(worker: WorkerId, number: int, scale: float, generation: int = 2) -> Vote:
    return Vote(worker, Round(number), Generation(generation), scale=scale)


def committed(ledger: Ledger, *votes: Vote) -> Commit:
    """What all voters are told, after the last of them."""
    answers = [answer for each in votes for answer in ledger.apply(each)]
    commits = [answer.commit for _, answer in answers if isinstance(answer, Committed)]
    assert len(commits) == len(votes)
    assert ledger.last is not None
    assert all(commit == ledger.last for commit in commits)
    return ledger.last


def test_a_round_is_scaled_as_its_lowest_rank_says_whoever_votes_first() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    votes = [vote(TWO, 1, 0.5), vote(THREE, 1, 0.6), vote(ONE, 1, 0.4)]
    assert committed(ledger, *votes).scale == 0.4


def test_a_worker_that_contributes_nothing_has_no_say() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.leases = {ONE: (), TWO: (Range(0, 3),)}
    silent = Vote(ONE, Round(1), Generation(2), contributes=False, scale=0.1)
    assert committed(ledger, silent, vote(TWO, 1, 0.5)).scale == 0.5


def test_what_was_voted_in_an_older_generation_scales_nothing() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1, 0.5))
    ledger.apply(Observe((TWO,), 9))
    assert committed(ledger, vote(TWO, 1, 0.9, generation=3)).scale == 0.9


def test_the_ledgers_state_keeps_what_was_voted() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1, math.pi))
    promoted = msgspec.msgpack.decode(msgspec.msgpack.encode(ledger), type=Ledger)
    assert promoted == ledger
    promoted.apply(vote(TWO, 1, 0.5))
    assert promoted.last == Commit(Round(1), Generation(2), (ONE, TWO), scale=math.pi)


def test_a_norm_that_is_no_number_reaches_every_voter() -> None:
    ledger = ledger_of(ONE)
    answers = ledger.apply(vote(ONE, 1, math.nan))
    body = msgspec.msgpack.encode(answers[0][1])
    assert math.isnan(msgspec.msgpack.decode(body, type=Committed).commit.scale)


@pytest.mark.parametrize("apart", [True, False])
def test_a_round_without_pushes_still_proves_how_the_one_before_was_scaled(*, apart: bool) -> None:
    ledger = ledger_of(ONE)
    committed(ledger, vote(ONE, 1, 0.25))
    for number in (2, 3):
        if not apart:
            ledger.leases = {ONE: ()}
        last = Vote(
            ONE, Round(number), Generation(2), contributes=apart, pushed=not apart, scale=0.5
        )
        commit = committed(ledger, last)
        assert (commit.apart, commit.contributors, commit.scale) == (apart, (), 0.25)


# -- a block ------------------------------------------------------------------------------------


def holder_of(op: RoundOp) -> Replica:
    """A replica that has ``op`` prepared, and no round applied."""
    me = ServerId("n/1")
    replica = Replica(me=me)
    replica.replication.adopt(Entry(block=BlockId(1), primary=me, epoch=PlanEpoch(5), fresh=True))
    replica.initialize(Round(0), digest=0)
    replica.prepare(op)
    return replica


PUSHED = RoundOp(Round(1), Generation(1), ((ONE, Seq(1)),))
PROOF = Commit(Round(1), Generation(1), (ONE,), scale=0.25)
EMPTY = Commit(Round(2), Generation(1), (), scale=0.25)
APART = Commit(Round(2), Generation(1), (), apart=True, base=PROOF, scale=0.25)


@pytest.mark.parametrize("proof", [PROOF, EMPTY, APART], ids=["its own", "empty", "apart"])
def test_every_commit_that_has_a_round_applied_says_how_it_is_scaled(proof: Commit) -> None:
    replica = holder_of(PUSHED)
    assert replica.settle(proof) is Settled.APPLY
    replica.apply_prepared(proof.scale)
    assert replica.last == PROOF, "this is what the next op proves to the backups"
