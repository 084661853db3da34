"""The ledger of workers that do not move in step: the bound, the floor, samples at least once."""

from __future__ import annotations

from collections import Counter

import pytest

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Admitted,
    Answer,
    Command,
    Committed,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Ready,
    Refused,
    Register,
    Vote,
)
from elasticps.core.ids import Generation, Round, Seq, WorkerId
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit
from tests.support.ledger_answers import asked, only, positions
from tests.support.ledger_world import encoded

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)
DATA = DataSpec(size=8, batch_size=2, epochs=1, seed=0)


def vote(worker: WorkerId, number: int, seq: int = 0, **flags: bool) -> Vote:
    return Vote(worker, Round(number), Generation(1), seq=Seq(seq or number), **flags)


def ledger_of(
    *workers: WorkerId,
    staleness: int | None = 0,
    data: DataSpec | None = None,
    ahead: int = 0,
) -> ClockLedger:
    ledger = ClockLedger(start_workers=len(workers), staleness=staleness)
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    if data is not None:
        for worker in workers:
            ledger.apply(Register(worker, data, ahead=ahead))
    return ledger


# -- the bound ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("staleness", "steps"), [(0, 0), (1, 1), (3, 3), (None, 9)])
def test_a_worker_takes_as_many_steps_ahead_as_the_bound_allows(
    staleness: int | None, steps: int
) -> None:
    ledger = ledger_of(ONE, TWO, staleness=staleness)
    for number in range(1, steps + 1):
        assert asked(ledger.apply(vote(ONE, number))) == [ONE]
    assert asked(ledger.apply(vote(ONE, steps + 1))) == ([ONE] if staleness is None else [])


def test_who_waits_goes_on_when_the_slowest_has_caught_up() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    assert ledger.apply(vote(ONE, 1)) == []
    assert ledger.apply(vote(TWO, 1)) == []
    answers = ledger.apply(vote(THREE, 1))
    assert asked(answers) == [ONE, TWO, THREE]
    assert only(answers, TWO).commit == Commit(Round(1), Generation(1), (TWO,))  # type: ignore[union-attr]
    assert ledger.round == 1


@pytest.mark.parametrize("end", [Leave(TWO), Observe((ONE,), 9), vote(TWO, 1, leaving=True)])
def test_who_waits_goes_on_when_the_slowest_is_gone(end: Command) -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1))
    assert ONE in asked(ledger.apply(end))
    assert ledger.clocks == {ONE: 1}


def test_a_joiner_begins_where_the_slowest_is() -> None:
    ledger = ledger_of(ONE, TWO, staleness=2)
    for number in (1, 2, 3):
        ledger.apply(vote(ONE, number))
        ledger.apply(vote(TWO, number))
    ledger.apply(vote(ONE, 4))
    admitted = only(ledger.apply(Join(THREE)), THREE)
    assert isinstance(admitted, Admitted)
    assert admitted.turn.round == 4
    assert admitted.floor == {ONE: 4, TWO: 3}


def test_a_clock_never_goes_back_though_all_leave() -> None:
    ledger = ledger_of(ONE)
    ledger.apply(vote(ONE, 1))
    ledger.apply(Leave(ONE))
    admitted = only(ledger.apply(Join(TWO)), TWO)
    assert isinstance(admitted, Admitted)
    assert admitted.turn.round == 2


# -- answers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (vote(ONE, 1), Committed),
        (vote(ONE, 3), Refused),
        (vote(ONE, 0), Refused),
        (vote(THREE, 1), Refused),
        (Ready(ONE, Round(2), Generation(1)), Refused),
        (Initialized(THREE), Refused),
        (Register(THREE, DATA), Refused),
        (Leave(THREE), Left),
        (Join(ONE), Admitted),
    ],
)
def test_a_question_out_of_turn_has_its_answer(late: Command, expected: type[Answer]) -> None:
    ledger = ledger_of(ONE, TWO)
    for worker in (ONE, TWO):
        ledger.apply(vote(worker, 1))
    assert isinstance(only(ledger.apply(late), late.worker), expected)  # type: ignore[union-attr]
    assert ledger.clocks == {ONE: 1, TWO: 1}


def test_a_vote_that_waits_is_not_answered_by_asking_again() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1))
    before = encoded(ledger)
    assert ledger.apply(vote(ONE, 1)) == []
    assert encoded(ledger) == before


def test_a_worker_that_leaves_with_its_vote_hears_so_however_late() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None)
    first = only(ledger.apply(vote(ONE, 1, leaving=True)), ONE)
    assert isinstance(first, Committed)
    assert first.turn is None
    again = only(ledger.apply(vote(ONE, 1, leaving=True)), ONE)
    assert isinstance(again, Committed)
    assert (again.commit, again.turn) == (first.commit, None)


# -- the floor ----------------------------------------------------------------------------------


def test_the_floor_is_each_members_newest_acknowledged_push() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None)
    ledger.apply(vote(ONE, 1, seq=4))
    committed = only(ledger.apply(vote(TWO, 1, seq=9)), TWO)
    assert isinstance(committed, Committed)
    assert committed.floor == {ONE: 4, TWO: 9}


def test_a_vote_without_a_push_raises_no_floor() -> None:
    """No block has a push of this worker: a read that asks for one would never be answered."""
    ledger = ledger_of(ONE, TWO, staleness=None)
    committed = only(ledger.apply(vote(ONE, 1, seq=0, contributes=False)), ONE)
    assert isinstance(committed, Committed)
    assert committed.floor == {}


# -- data ---------------------------------------------------------------------------------------


def test_samples_are_read_with_the_vote_and_come_back_from_the_dead() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DATA)
    assert ledger.leases == {ONE: (Range(0, 1),), TWO: (Range(1, 2),)}
    ledger.apply(vote(ONE, 1))
    assert ledger.leases == {ONE: (Range(2, 3),), TWO: (Range(1, 2),)}
    ledger.apply(Observe((ONE,), 9))
    ledger.apply(vote(ONE, 2))
    assert ledger.leases == {ONE: (Range(1, 2), Range(3, 4))}


def test_a_worker_is_lent_what_it_was_told_to_load_beforehand() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(20, 2, 1, 0), ahead=2)
    for number in range(1, 4):
        ledger.apply(vote(ONE, number))
    turn = ledger.turn(ONE)
    assert len(turn.ahead) == 2
    for number in range(4, 8):
        turn, before = only(ledger.apply(vote(ONE, number)), ONE).turn, turn  # type: ignore[union-attr]
        assert (turn.samples, turn.ahead[0]) == before.ahead
    assert len(ledger.turn(TWO).ahead) == 2


def test_what_is_reserved_for_a_slow_worker_is_lent_to_who_would_have_nothing() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(10, 2, 1, 0), ahead=3)
    for number in range(1, 10):
        assert asked(ledger.apply(vote(ONE, number))) == ([ONE] if number < 9 else [])
    assert ledger.turn(TWO).ahead == ()
    assert len(ledger.apply(vote(TWO, 1))) == 2
    assert ledger.turn(TWO).exhausted


@pytest.mark.parametrize("end", [Leave(TWO), Observe((ONE,), 9), vote(TWO, 1, leaving=True)])
def test_what_was_reserved_for_a_worker_that_is_gone_is_read_by_others(end: Command) -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(10, 2, 1, 0), ahead=3)
    ledger.apply(vote(ONE, 1))
    assert ledger.turn(TWO).ahead
    reads = Counter({0: 1})
    if isinstance(end, Vote):
        reads.update(positions(ledger.turn(TWO).samples))
    ledger.apply(end)
    for number in range(2, 12):
        reads.update(positions(ledger.turn(ONE).samples))
        ledger.apply(vote(ONE, number, contributes=not ledger.turn(ONE).exhausted))
    assert reads == Counter(range(10))


def test_a_checkpoint_counts_what_is_reserved_as_not_read() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(10, 2, 1, 0), ahead=3)
    ledger.apply(vote(ONE, 1))
    supply = ledger.cut().supply
    assert supply.position - len(positions(supply.given_back)) == 1


def test_nobody_is_told_that_the_data_are_read_while_another_has_some() -> None:
    ledger = ledger_of(ONE, TWO, staleness=None, data=DataSpec(2, 2, 1, 0))
    assert ledger.apply(vote(ONE, 1)) == []
    answers = ledger.apply(vote(TWO, 1))
    assert asked(answers) == [ONE, TWO]
    assert all(answer.turn.exhausted for _, answer in answers)  # type: ignore[union-attr]


def test_the_bound_makes_the_fast_wait_for_the_slowest_by_name() -> None:
    ledger = ledger_of(ONE, TWO, THREE, staleness=1)
    for worker, number in ((ONE, 1), (TWO, 1), (ONE, 2)):
        assert ledger.awaited == []
        ledger.apply(vote(worker, number))
    assert ledger.awaited == [THREE]
    ledger.apply(vote(THREE, 1))
    assert ledger.awaited == []
