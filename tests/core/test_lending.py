"""Data policies: what they share out, and that no answer of theirs loses or repeats a sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Admitted,
    Committed,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Refused,
    Register,
    Registered,
    Vote,
)
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.lending import BUILT_IN, MAX_PIECES, STATIC, Lending, Loans, Static
from elasticps.core.ranges import DataSpec, Range, Supply
from tests.support.ledger_answers import positions
from tests.support.properties import REPRODUCIBLE

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)
Ranges = tuple[Range, ...]


class Answers:
    """A lender that gives one answer, or raises it."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def lend(self, asked: Lending) -> Loans:
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer  # type: ignore[return-value]


def ledger_of(*workers: WorkerId, data: DataSpec, data_policy: str = STATIC) -> Ledger:
    """A ledger whose members read ``data``, at the start of round 1 under generation 2."""
    ledger = Ledger(start_workers=len(workers), data_policy=data_policy)
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    for worker in workers:
        ledger.apply(Register(worker, data))
    return ledger


def go_through(ledger: Ledger) -> None:
    """Everybody votes for the round under way."""
    round_, generation = Round(ledger.round + 1), ledger.generation
    for worker in list(ledger.members):
        contributes = bool(ledger.leases[worker])
        ledger.apply(Vote(worker, round_, generation, contributes))


# -- static -------------------------------------------------------------------------------------


def test_each_worker_reads_its_stripe_of_every_data_epoch() -> None:
    ledger = ledger_of(ONE, TWO, data=DataSpec(size=10, batch_size=3, epochs=2, seed=0))
    read: dict[WorkerId, list[int]] = {ONE: [], TWO: []}
    batches = []
    while any(ledger.leases.values()):
        for worker, lease in ledger.leases.items():
            read[worker] += positions(lease)
        batches.append(sum(len(positions(lease)) for lease in ledger.leases.values()))
        go_through(ledger)
    assert read == {ONE: [*range(5), *range(10, 15)], TWO: [*range(5, 10), *range(15, 20)]}
    assert batches == [3, 3, 3, 1, 3, 3, 3, 1]


def test_what_a_dead_worker_had_left_is_divided_among_the_living() -> None:
    ledger = ledger_of(ONE, TWO, THREE, data=DataSpec(size=12, batch_size=3, epochs=1, seed=0))
    go_through(ledger)  # 0, 4 and 8 are read
    ledger.apply(Observe((ONE, THREE), 9))
    assert ledger.leases == {ONE: (Range(1, 2),), THREE: (Range(9, 10),)}
    go_through(ledger)
    assert {worker: positions(parts) for worker, parts in ledger.owned.items()} == {
        ONE: [2, 3, 5, 6],
        THREE: [7, 10, 11],
    }


def test_a_joiner_gets_a_stripe_of_what_is_left() -> None:
    ledger = ledger_of(ONE, data=DataSpec(size=9, batch_size=2, epochs=1, seed=0))
    assert ledger.owned == {ONE: (Range(0, 9),)}
    ledger.apply(Join(TWO))
    ledger.apply(Vote(ONE, Round(1), Generation(2)))
    assert ledger.owned == {ONE: (Range(2, 6),), TWO: (Range(6, 9),)}
    assert ledger.leases == {ONE: (Range(2, 3),), TWO: (Range(6, 7),)}


def test_who_has_read_its_stripe_takes_part_in_what_others_have_left() -> None:
    """A worker without samples holds up those that may not run ahead of it."""
    ledger = ClockLedger(start_workers=2, staleness=0, data_policy=STATIC)
    data = DataSpec(size=4, batch_size=4, epochs=1, seed=0)
    for command in (Join(ONE), Join(TWO), Initialized(ONE), Register(ONE, data)):
        ledger.apply(command)
    assert ledger.leases == {ONE: (Range(0, 2),), TWO: (Range(2, 4),)}
    asked = Lending(
        size=8,
        members=(ONE, TWO),
        borrowers=(ONE,),
        wanted=2,
        unread=(Range(5, 8),),
        owned={ONE: (Range(0, 4),), TWO: (Range(4, 8),)},
    )
    loans = Static().lend(asked)
    assert loans.lent == {ONE: (Range(5, 7),)}
    assert loans.owned == {ONE: (Range(5, 7),), TWO: (Range(7, 8),)}


# -- any policy ---------------------------------------------------------------------------------


@settings(REPRODUCIBLE)
@given(
    policy=st.sampled_from(sorted(BUILT_IN)),
    data=st.builds(
        DataSpec,
        size=st.integers(1, 30),
        batch_size=st.integers(1, 9),
        epochs=st.integers(1, 3),
        seed=st.just(0),
    ),
    crowds=st.lists(st.sets(st.integers(1, 5), min_size=1), min_size=1, max_size=12),
)
def test_whoever_comes_and_goes_every_sample_is_lent_once_and_kept(
    policy: str, data: DataSpec, crowds: list[set[int]]
) -> None:
    supply, owned = Supply(), dict[WorkerId, Ranges]()
    read: Counter[int] = Counter()
    turn = 0
    while unread := supply.unread(data):
        crowd = tuple(WorkerId(number) for number in sorted(crowds[turn % len(crowds)]))
        asked = Lending(
            size=data.size,
            members=crowd,
            borrowers=crowd,
            wanted=data.batch_size,
            unread=unread,
            owned=owned,
        )
        loans = BUILT_IN[policy].lend(asked)
        assert loans == BUILT_IN[policy].lend(asked)
        lent = [part for each in loans.lent.values() for part in each]
        assert 0 < len(positions(lent)) <= data.batch_size
        owned, supply = dict(loans.owned), supply.without(lent)
        if turn % 3 == 1:  # somebody dies with what it holds
            supply = supply.returned(loans.lent[crowd[0]])
            read.update(positions(part for name in crowd[1:] for part in loans.lent[name]))
        else:
            read.update(positions(lent))
        left = Counter(positions(supply.given_back))
        assert read + left == Counter(range(supply.position))
        turn += 1
        assert turn < 20 * data.size * data.epochs
    assert read == Counter(range(data.size * data.epochs))


UNSOUND: Mapping[str, tuple[object, str]] = {
    "raises": (RuntimeError("no idea"), "RuntimeError: no idea"),
    "exits": (SystemExit(3), "SystemExit"),
    "nothing": (None, "AttributeError"),
    "no ranges": (Loans(lent={ONE: ((0, 1),)}), "no range"),  # type: ignore[dict-item]
    "half a sample": (Loans(lent={ONE: (Range(0, 1.5),)}), "no range"),  # type: ignore[arg-type]
    "empty range": (Loans(lent={ONE: (Range(2, 2),)}), "no range"),
    "a stranger": (Loans(lent={THREE: (Range(0, 1),)}), "do not borrow"),
    "a stranger owns": (
        Loans(lent={ONE: (Range(0, 1),)}, owned={THREE: (Range(0, 1),)}),
        "no members",
    ),
    "the same twice": (Loans(lent={ONE: (Range(0, 2),), TWO: (Range(1, 3),)}), "twice"),
    "what is read": (Loans(lent={ONE: (Range(9, 11),)}), "read or lent already"),
    "too much": (Loans(lent={ONE: (Range(0, 5),)}), "4 are due"),
    "nobody anything": (Loans(lent={}), "lends nothing"),
    "crumbs": (
        Loans(
            lent={ONE: (Range(0, 1),)},
            owned={ONE: tuple(Range(n, n + 1) for n in range(MAX_PIECES + 1))},
        ),
        "pieces",
    ),
}


@pytest.mark.parametrize("kind", list(UNSOUND))
def test_an_unsound_policy_ends_the_job_with_its_name_and_lends_nothing(kind: str) -> None:
    answer, reason = UNSOUND[kind]
    data = DataSpec(size=10, batch_size=4, epochs=1, seed=0)
    ledger = Ledger(start_workers=2, data_policy="acme").ruled_by(Answers(answer))
    for command in (Join(ONE), Join(TWO), Initialized(ONE)):
        ledger.apply(command)

    told = dict(ledger.apply(Register(ONE, data)))

    assert set(told) == {ONE, TWO}
    for refused in told.values():
        assert isinstance(refused, Refused)
        assert refused.reason.startswith("data policy acme: ")
        assert reason in refused.reason
    assert (ledger.supply, ledger.owned, list(positions_lent(ledger))) == (Supply(), {}, [])
    for command in (Join(THREE), Register(TWO, data), Vote(TWO, Round(1), Generation(1))):
        ((_, answer),) = ledger.apply(command)
        assert isinstance(answer, Refused)
    ((_, answer),) = ledger.apply(Leave(TWO))
    assert isinstance(answer, Left)


def positions_lent(ledger: Ledger) -> Iterable[int]:
    return (position for lease in ledger.leases.values() for position in positions(lease))


def test_a_policy_that_fails_later_refuses_those_who_wait_for_the_round() -> None:
    lender = Answers(Loans(lent={ONE: (Range(0, 1),), TWO: (Range(1, 2),)}))
    data = DataSpec(size=10, batch_size=4, epochs=1, seed=0)
    ledger = Ledger(start_workers=2, data_policy="acme").ruled_by(lender)
    for command in (Join(ONE), Join(TWO), Initialized(ONE)):
        assert all(isinstance(answer, Admitted) for _, answer in ledger.apply(command))
    for worker in (ONE, TWO):
        ((_, answer),) = ledger.apply(Register(worker, data))
        assert isinstance(answer, Registered)
    ledger.apply(Join(THREE))
    ledger.apply(Vote(ONE, Round(1), Generation(2)))
    told = ledger.apply(Vote(TWO, Round(1), Generation(2)))  # the same samples once more
    assert [worker for worker, _ in told] == [ONE, TWO, THREE]
    assert all(isinstance(answer, Refused) for _, answer in told)
    assert not any(isinstance(answer, Committed) for _, answer in told)


def test_a_copy_of_a_ledger_keeps_what_was_owned() -> None:
    ledger = ledger_of(ONE, TWO, data=DataSpec(size=10, batch_size=2, epochs=1, seed=0))
    copy = msgspec.msgpack.decode(msgspec.msgpack.encode(ledger), type=Ledger)
    go_through(ledger)
    go_through(copy)
    assert (copy.owned, copy.leases) == (ledger.owned, ledger.leases)


def test_a_ledger_whose_policy_nobody_brought_goes_no_further() -> None:
    ledger = Ledger(start_workers=1, data_policy="acme")
    for command in (Join(ONE), Initialized(ONE)):
        ledger.apply(command)
    with pytest.raises(AssertionError, match="acme"):
        ledger.apply(Register(ONE, DataSpec(size=4, batch_size=2, epochs=1, seed=0)))
