"""Rounds whose workers exchange among themselves: samples count, blocks have no part in them."""

from __future__ import annotations

import pytest

from elasticps.core.commands import (
    Committed,
    Initialized,
    Join,
    Observe,
    Refused,
    Regenerated,
    Register,
    Vote,
)
from elasticps.core.ids import BlockId, Generation, PlanEpoch, Round, Seq, ServerId, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.plan import Entry
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit, Push, PushOutcome, Replica, RoundOp, Settled

ONE, TWO = WorkerId(1), WorkerId(2)
DATA = DataSpec(size=8, batch_size=4, epochs=1, seed=0)


def ledger_of(*workers: WorkerId) -> Ledger:
    """Its members read DATA; generation 2."""
    ledger = Ledger(start_workers=len(workers))
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    for worker in workers:
        ledger.apply(Register(worker, DATA))
    return ledger


def vote(worker: WorkerId, number: int, generation: int = 2, *, pushed: bool = False) -> Vote:
    return Vote(worker, Round(number), Generation(generation), pushed=pushed)


def commit(number: int, *contributors: WorkerId) -> Commit:
    return Commit(Round(number), Generation(2), contributors)


def apart(number: int, base: Commit | None = None) -> Commit:
    return Commit(Round(number), Generation(2), (), apart=True, base=base)


# -- the ledger ---------------------------------------------------------------------------------


def test_a_round_apart_counts_its_samples_and_names_the_last_round_that_was_pushed() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1, pushed=True))
    ledger.apply(vote(TWO, 1, pushed=True))
    ledger.apply(vote(ONE, 2))
    answers = dict(ledger.apply(vote(TWO, 2)))
    assert ledger.last == apart(2, base=commit(1, ONE, TWO))
    for worker in (ONE, TWO):
        answer = answers[worker]
        assert isinstance(answer, Committed)
        assert answer.counted
    assert ledger.supply.given_back == ()
    assert ledger.turn(ONE).exhausted


def test_a_round_apart_after_another_has_the_same_base() -> None:
    ledger = ledger_of(ONE)
    ledger.apply(vote(ONE, 1))
    assert ledger.last == apart(1)
    ledger.apply(vote(ONE, 2))
    assert ledger.last == apart(2)


def test_a_turn_says_that_nothing_is_left_to_lend_until_a_worker_dies() -> None:
    ledger = ledger_of(ONE, TWO)
    assert not ledger.turn(ONE).last
    ledger.apply(vote(ONE, 1))
    ledger.apply(vote(TWO, 1))
    assert ledger.turn(ONE).last
    ledger.apply(Observe((ONE,), 9))
    assert not ledger.turn(ONE).last
    assert ledger.supply.given_back == (Range(6, 8),)


@pytest.mark.parametrize("first", [True, False])
def test_workers_that_do_not_agree_whether_they_push_are_told(*, first: bool) -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1, pushed=first))
    assert isinstance(ledger.apply(vote(TWO, 1, pushed=not first))[0][1], Refused)
    assert ledger.round == 0


def test_who_voted_for_a_round_apart_votes_again_when_another_dies() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1))
    ((worker, answer),) = ledger.apply(Observe((ONE,), 9))
    assert worker == ONE
    assert isinstance(answer, Regenerated)
    ledger.apply(vote(ONE, 1, 3, pushed=True))
    assert ledger.last == Commit(Round(1), Generation(3), (ONE,))


def test_an_empty_round_after_one_apart_asks_nothing_of_the_blocks_either() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1))
    ledger.apply(vote(TWO, 1))
    ledger.leases = {ONE: (), TWO: ()}
    for worker in (ONE, TWO):
        ledger.apply(Vote(worker, Round(2), Generation(2), contributes=False))
    assert ledger.last == apart(2)


# -- a block ------------------------------------------------------------------------------------


def block() -> Replica:
    """Has its first value, and no round."""
    me = ServerId("n/1")
    replica = Replica(me=me)
    replica.replication.adopt(Entry(block=BlockId(1), primary=me, epoch=PlanEpoch(5), fresh=True))
    replica.initialize(Round(0), digest=0)
    return replica


def settled(replica: Replica, proof: Commit) -> list[Settled]:
    """What a proof asks for, carried out, until it asks for no more."""
    asked = []
    while (wants := replica.settle(proof)) not in (Settled.DONE, Settled.MISSING):
        asked.append(wants)
        if wants is Settled.APPLY:
            replica.apply_prepared(proof.scale)
        elif wants is Settled.SKIP:
            replica.skip(proof)
        else:
            replica.prepare(replica.empty_round(proof))
    return [*asked, wants]


def test_a_block_skips_any_number_of_rounds_apart() -> None:
    replica = block()
    assert settled(replica, apart(7)) == [Settled.SKIP, Settled.DONE]
    assert replica.round == 7
    pushed = Push(worker=ONE, seq=Seq(1), round=Round(8), generation=Generation(2), pushers=1)
    assert replica.push(pushed) is PushOutcome.PREPARE


def test_a_round_that_is_prepared_is_applied_before_those_apart_that_follow_it() -> None:
    replica = block()
    replica.prepare(RoundOp(Round(1), Generation(2), ((ONE, Seq(1)),)))
    assert settled(replica, apart(5, base=commit(1, ONE))) == [
        Settled.APPLY,
        Settled.SKIP,
        Settled.DONE,
    ]
    assert replica.applied[ONE].seq == 1


def test_a_block_that_has_missed_the_base_says_so() -> None:
    assert settled(block(), apart(5, base=commit(1, ONE))) == [Settled.MISSING]


def test_a_base_to_which_nobody_contributed_is_made_up_for() -> None:
    replica = block()
    asked = settled(replica, apart(5, base=commit(1)))
    assert asked == [Settled.PREPARE_EMPTY, Settled.APPLY, Settled.SKIP, Settled.DONE]


def test_what_was_prepared_for_a_round_that_was_made_apart_is_void() -> None:
    replica = block()
    replica.prepare(RoundOp(Round(1), Generation(1), ((ONE, Seq(1)),)))
    assert settled(replica, apart(1)) == [Settled.SKIP, Settled.DONE]
    assert replica.prepared is None
    assert replica.applied == {}
