"""Samples that a worker has not read when it votes: they stay lent to it, and are never lost."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import Committed, Initialized, Join, Observe, Refused, Register, Vote
from elasticps.core.ids import WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.roster import Roster

DATA = DataSpec(size=40, batch_size=8, epochs=1, seed=0)
ONE, OTHER = WorkerId(1), WorkerId(2)

LEDGERS: dict[str, Any] = {
    "sync": lambda: Ledger(start_workers=2),
    "bounded": lambda: ClockLedger(start_workers=2, staleness=0),
    "async": lambda: ClockLedger(start_workers=2),
}


def begun(kind: str) -> Roster:
    ledger: Roster = LEDGERS[kind]()
    for worker in (ONE, OTHER):
        ledger.apply(Join(worker))
    ledger.apply(Initialized(ONE))
    for worker in (ONE, OTHER):
        ledger.apply(Register(worker, DATA))
    return ledger


def vote(
    ledger: Roster, worker: WorkerId, keeps: tuple[Range, ...] = (), **how: Any
) -> dict[WorkerId, Any]:
    turn = ledger.turn(worker)
    ballot = Vote(worker, turn.round, turn.generation, bool(turn.samples), keeps=keeps, **how)
    return dict(ledger.apply(ballot))


def lent(ledger: Roster, worker: WorkerId) -> tuple[Range, ...]:
    return ledger.turn(worker).samples


@pytest.mark.parametrize("kind", LEDGERS)
def test_what_is_kept_comes_first_in_the_next_turn(kind: str) -> None:
    ledger = begun(kind)
    assert lent(ledger, ONE) == (Range(0, 4),)

    answers = vote(ledger, ONE, keeps=(Range(3, 4),))
    answers |= vote(ledger, OTHER)

    assert isinstance(answers[ONE], Committed)
    first, *fresh = lent(ledger, ONE)
    assert first == Range(3, 4)
    assert 3 <= sum(map(len, fresh)) <= 4  # what is kept is a part of the next global batch


@pytest.mark.parametrize("kind", LEDGERS)
def test_what_was_not_lent_cannot_be_kept(kind: str) -> None:
    ledger = begun(kind)
    answer = vote(ledger, ONE, keeps=(Range(3, 5),))[ONE]
    assert answer == Refused("only samples that were lent can be kept")


@pytest.mark.parametrize("how", ["dies", "leaves with its next vote", "leaves at once"])
@pytest.mark.parametrize("kind", LEDGERS)
def test_what_a_worker_that_goes_has_kept_is_lent_again(kind: str, how: str) -> None:
    ledger = begun(kind)
    if how == "leaves at once":
        vote(ledger, ONE, keeps=(Range(3, 4),), leaving=True)
        vote(ledger, OTHER)
        gone = {Range(3, 4)}
    else:
        vote(ledger, ONE, keeps=(Range(3, 4),))
        vote(ledger, OTHER)
        gone = set(lent(ledger, ONE))
        if how == "dies":
            ledger.apply(Observe((OTHER,), 100))
        else:
            vote(ledger, ONE, keeps=lent(ledger, ONE), leaving=True)
            vote(ledger, OTHER)
    found = {*ledger.supply.given_back, *lent(ledger, OTHER)}
    assert positions(gone) <= positions(found)


def test_a_cut_counts_what_is_kept_as_not_read() -> None:
    ledger = begun("sync")
    vote(ledger, ONE, keeps=(Range(3, 4),))
    vote(ledger, OTHER)
    assert ledger.cut().supply.position == 8
    assert ledger.cut().supply.given_back == (Range(3, 4),)


def test_the_last_turn_says_so() -> None:
    ledger = begun("sync")
    for number in range(4):
        assert not ledger.turn(ONE).last, number
        vote(ledger, ONE)
        vote(ledger, OTHER)
    assert ledger.turn(ONE).last
    assert not ledger.turn(ONE).exhausted
    vote(ledger, ONE, keeps=lent(ledger, ONE))
    vote(ledger, OTHER)
    assert not ledger.turn(OTHER).exhausted
    vote(ledger, ONE)
    vote(ledger, OTHER)
    assert ledger.turn(OTHER).exhausted


@settings(deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(LEDGERS)))
def test_every_sample_is_read_once_whatever_is_kept(data: st.DataObject, kind: str) -> None:
    ledger = begun(kind)
    read: Counter[int] = Counter()
    held: dict[WorkerId, Counter[int]] = {ONE: Counter(), OTHER: Counter()}
    for _ in range(100):
        for worker in ledger.members:
            turn = ledger.turn(worker)
            waits = isinstance(ledger, ClockLedger) and worker in ledger.waiting
            if turn.exhausted or waits:
                continue
            new = positions(turn.samples) - set(held[worker])
            taken = data.draw(st.integers(min(1, len(new)), len(new)))
            order = sorted(new)
            read.update(order[:taken])
            held[worker].update(order[:taken])
            vote(ledger, worker, keeps=tuple(Range(item, item + 1) for item in order[taken:]))
        if all(ledger.turn(worker).exhausted for worker in ledger.members):
            break
    assert read == Counter(dict.fromkeys(range(DATA.size), 1))


def positions(ranges: Any) -> set[int]:
    return {number for part in ranges for number in range(part.start, part.stop)}
