"""Numbers that the members of a round put together: the sums are one answer for all."""

from __future__ import annotations

import pytest

from elasticps.core.commands import Leave, Observe, Reduce, Reduced, Refused, Vote
from elasticps.core.ids import Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.reduction import MAX_NUMBERS
from tests.core.test_leased import ONE, THREE, TWO, go_through, ledger_of


def give(ledger: Ledger, worker: WorkerId, *numbers: float, number: int = 1, weight: float = 1.0):  # type: ignore[no-untyped-def]
    return ledger.apply(Reduce(worker, ledger.round, number, numbers, weight))


def test_all_who_give_hear_the_same_sums_once_the_last_has_given() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    assert give(ledger, TWO, 1.0, 10.0, weight=2.0) == []
    assert give(ledger, ONE, 2.0, 20.0) == []
    told = Reduced((6.0, 60.0), 4.0, 3)
    assert give(ledger, THREE, 3.0, 30.0) == [(ONE, told), (TWO, told), (THREE, told)]
    assert give(ledger, ONE, 2.0, 20.0) == [(ONE, told)]  # its answer was lost


def test_who_has_voted_for_the_round_is_not_waited_for() -> None:
    ledger = ledger_of(ONE, TWO)
    assert give(ledger, ONE, 1.0) == []
    told = ledger.apply(Vote(TWO, Round(1), ledger.generation))
    assert told == [(ONE, Reduced((1.0,), 1.0, 1))]


@pytest.mark.parametrize("end", ["leaves", "dies"])
def test_who_is_gone_is_not_waited_for(end: str) -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    give(ledger, ONE, 1.0)
    give(ledger, THREE, 5.0)
    told = ledger.apply(Leave(TWO) if end == "leaves" else Observe((ONE, THREE), 9))
    sums = Reduced((6.0,), 2.0, 2)
    assert [answer for answer in told if isinstance(answer[1], Reduced)] == [
        (ONE, sums),
        (THREE, sums),
    ]


def test_numbers_of_a_worker_that_died_before_the_sums_do_not_count() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    give(ledger, TWO, 100.0)
    ledger.apply(Observe((ONE, THREE), 9))
    give(ledger, ONE, 1.0)
    assert give(ledger, THREE, 2.0)[0] == (ONE, Reduced((3.0,), 2.0, 2))


def test_a_late_copy_of_an_earlier_request_is_no_part_of_the_next_sums() -> None:
    ledger = ledger_of(ONE, TWO)
    give(ledger, ONE, 1.0)
    give(ledger, TWO, 1.0)
    go_through(ledger)
    late = Reduce(ONE, Round(0), 0, (9.0,), 1.0)
    ((_, answer),) = ledger.apply(late)
    assert isinstance(answer, Refused)
    give(ledger, ONE, 2.0)
    assert give(ledger, TWO, 3.0)[0] == (ONE, Reduced((5.0,), 2.0, 2))


def test_more_numbers_than_a_ledger_carries_are_refused() -> None:
    ((_, answer),) = give(ledger_of(ONE), ONE, *[1.0] * (MAX_NUMBERS + 1))
    assert isinstance(answer, Refused)
