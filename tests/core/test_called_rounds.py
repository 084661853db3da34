"""Rounds that do not wait for the slowest: the ledger calls those whose gradients are ready."""

from __future__ import annotations

import msgspec
import pytest

from elasticps.core.commands import (
    Called,
    Command,
    Committed,
    Initialized,
    Join,
    Leave,
    Observe,
    Ready,
    Refused,
    Regenerated,
    Register,
    Vote,
)
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.ranges import DataSpec, Range
from elasticps.core.replica import Commit
from tests.support.ledger_answers import only

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)


def ready(worker: WorkerId, number: int = 1, generation: int = 1) -> Ready:
    return Ready(worker, Round(number), Generation(generation))


def vote(worker: WorkerId, number: int = 1, generation: int = 1, *, contributes: bool) -> Vote:
    return Vote(worker, Round(number), Generation(generation), contributes)


def ledger_of(*workers: WorkerId, backups: int = 1, data: DataSpec | None = None) -> Ledger:
    ledger = Ledger(start_workers=len(workers), backup_workers=backups)
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    if data is not None:
        for worker in workers:
            ledger.apply(Register(worker, data))
    return ledger


def after_round_1() -> Ledger:
    """ONE and THREE made round 1; TWO has said nothing yet."""
    ledger = ledger_of(ONE, TWO, THREE)
    for worker in (THREE, ONE):
        ledger.apply(ready(worker))
    for worker in (ONE, THREE):
        ledger.apply(vote(worker, contributes=True))
    return ledger


def test_those_who_are_ready_first_are_called_and_the_slowest_is_not_waited_for() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    assert ledger.apply(ready(THREE)) == []
    answers = ledger.apply(ready(ONE))
    assert answers == [
        (THREE, Called(2, contributes=True)),
        (ONE, Called(2, contributes=True)),
    ]
    assert only(ledger.apply(ready(TWO)), TWO) == Called(2, contributes=False)
    assert ledger.apply(vote(THREE, contributes=True)) == []
    committed = only(ledger.apply(vote(ONE, contributes=True)), ONE)
    assert isinstance(committed, Committed)
    assert committed.commit == Commit(Round(1), Generation(1), (ONE, THREE))


def test_a_vote_of_one_that_was_not_called_counts_no_gradient() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    for worker in (ONE, THREE):
        ledger.apply(ready(worker))
    assert isinstance(only(ledger.apply(vote(TWO, contributes=True)), TWO), Refused)
    assert ledger.apply(vote(TWO, contributes=False)) == []
    ledger.apply(vote(ONE, contributes=True))
    answers = ledger.apply(vote(THREE, contributes=True))
    assert [(name, answer.counted) for name, answer in answers] == [  # type: ignore[union-attr]
        (ONE, True),
        (TWO, False),
        (THREE, True),
    ]


@pytest.mark.parametrize("late", [ready(TWO), vote(TWO, contributes=False)])
def test_the_slowest_hears_that_the_round_is_over_and_that_it_does_not_count(late: Command) -> None:
    committed = only(after_round_1().apply(late), TWO)
    assert isinstance(committed, Committed)
    assert (committed.commit.round, committed.counted) == (1, False)
    assert committed.turn is not None
    assert committed.turn.round == 2


def test_one_that_is_rounds_behind_goes_on_with_the_next() -> None:
    ledger = after_round_1()
    for worker in (ONE, THREE):
        ledger.apply(ready(worker, 2))
    for worker in (ONE, THREE):
        ledger.apply(vote(worker, 2, contributes=True))
    committed = only(ledger.apply(ready(TWO)), TWO)
    assert isinstance(committed, Committed)
    assert (committed.commit.round, committed.counted) == (2, False)


def test_a_called_worker_that_asks_again_is_told_the_same() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    for worker in (ONE, THREE):
        ledger.apply(ready(worker))
    before = msgspec.msgpack.encode(ledger)
    assert only(ledger.apply(ready(ONE)), ONE) == Called(2, contributes=True)
    assert msgspec.msgpack.encode(ledger) == before


def test_a_vote_whose_answer_was_lost_is_told_again_that_it_counts() -> None:
    committed = only(after_round_1().apply(vote(ONE, contributes=True)), ONE)
    assert isinstance(committed, Committed)
    assert committed.counted


def test_a_death_calls_anew() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    for worker in (ONE, THREE):
        ledger.apply(ready(worker))
    ledger.apply(vote(ONE, contributes=True))
    answers = ledger.apply(Observe((ONE, TWO), 9))
    assert isinstance(only(answers, ONE), Regenerated)
    assert ledger.called == []
    assert isinstance(only(ledger.apply(ready(TWO)), TWO), Regenerated)
    assert only(ledger.apply(ready(TWO, 1, 2)), TWO) == Called(1, contributes=True)


def test_who_waits_to_be_called_hears_that_another_has_left() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    ledger.apply(ready(ONE))
    assert isinstance(only(ledger.apply(Leave(TWO)), ONE), Regenerated)
    assert only(ledger.apply(ready(ONE, 1, 2)), ONE) == Called(1, contributes=True)


def test_samples_of_one_that_was_not_called_are_lent_again_to_others() -> None:
    data = DataSpec(size=6, batch_size=3, epochs=1, seed=0)
    ledger = ledger_of(ONE, TWO, THREE, data=data)
    for worker in (ONE, THREE):
        ledger.apply(ready(worker, 1, 2))
    for worker in (ONE, THREE):
        ledger.apply(vote(worker, 1, 2, contributes=True))
    assert ledger.leases == {ONE: (Range(1, 2),), THREE: (Range(3, 4),), TWO: (Range(4, 5),)}


def test_members_without_samples_are_not_counted_as_slow() -> None:
    data = DataSpec(size=6, batch_size=2, epochs=1, seed=0)
    ledger = ledger_of(ONE, TWO, THREE, data=data)
    assert only(ledger.apply(ready(TWO, 1, 2)), TWO) == Called(1, contributes=True)


def test_two_backup_workers_of_two_leave_one_to_make_the_round() -> None:
    ledger = ledger_of(ONE, TWO, backups=2)
    assert only(ledger.apply(ready(TWO)), TWO) == Called(1, contributes=True)


def test_a_called_round_waits_for_those_alone_who_make_it() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    ledger.apply(ready(ONE))
    assert ledger.awaited == [TWO, THREE]
    ledger.apply(ready(TWO))
    assert ledger.awaited == []
    ledger.apply(vote(ONE, contributes=True))
    assert ledger.awaited == [TWO]
