"""Samples lent by measured speed, or by where they lie, and what is foreseen of the next rounds."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.commands import Held, Hold, Initialized, Join, Leave, Refused, Register, Vote
from elasticps.core.ids import Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.lending import DYNAMIC, LEASED, LOCAL, Leased, Lending, Local, apportioned
from elasticps.core.ranges import (
    DataSpec,
    Range,
    common,
    common_sorted,
    count_of,
    less,
    less_sorted,
)
from elasticps.core.reading import MAX_LOCAL
from tests.support.ledger_answers import positions
from tests.support.properties import REPRODUCIBLE

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)
DATA = DataSpec(size=200, batch_size=20, epochs=2, seed=0)
ranges = st.lists(st.integers(0, 40), unique=True, max_size=12).map(
    lambda bounds: tuple(
        Range(a, b) for a, b in zip(sorted(bounds)[::2], sorted(bounds)[1::2], strict=False)
    )
)


def ledger_of(
    *workers: WorkerId, policy: str = LEASED, ahead: int = 0, data: DataSpec = DATA
) -> Ledger:
    """A ledger whose members read ``data``, at the start of round 1."""
    ledger = Ledger(start_workers=len(workers))
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    for worker in workers:
        ledger.apply(Register(worker, data, policy, ahead))
    return ledger


def go_through(ledger: Ledger, **speeds: float) -> None:
    """Everybody votes for the round under way, at the speed that its number names."""
    round_, generation = Round(ledger.round + 1), ledger.generation
    for worker in list(ledger.members):
        speed = speeds.get(f"w{worker}", 0.0)
        lent = bool(ledger.leases[worker])
        ledger.apply(Vote(worker, round_, generation, lent, speed=speed))


def lent_to(ledger: Ledger) -> dict[WorkerId, int]:
    return {worker: count_of(parts) for worker, parts in ledger.leases.items()}


# -- shares -------------------------------------------------------------------------------------


def test_a_worker_four_times_as_slow_is_lent_a_quarter_and_the_batch_stays_whole() -> None:
    ledger = ledger_of(ONE, TWO)
    assert lent_to(ledger) == {ONE: 10, TWO: 10}
    go_through(ledger, w1=25.0, w2=100.0)
    assert lent_to(ledger) == {ONE: 4, TWO: 16}
    go_through(ledger, w1=100.0, w2=100.0)
    assert lent_to(ledger) == {ONE: 10, TWO: 10}


def test_a_newcomer_counts_as_the_mean_of_those_who_were_measured() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(Join(THREE))
    go_through(ledger, w1=10.0, w2=30.0)
    assert lent_to(ledger) == {ONE: 3, TWO: 10, THREE: 7}


@pytest.mark.parametrize("speed", [float("nan"), float("inf"), -1.0, 0.0])
def test_a_speed_that_is_none_changes_nothing(speed: float) -> None:
    ledger = ledger_of(ONE, TWO)
    go_through(ledger, w1=speed, w2=5.0)
    assert lent_to(ledger) == {ONE: 10, TWO: 10}


@settings(REPRODUCIBLE)
@given(wanted=st.integers(0, 60), weights=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=7))
def test_shares_sum_up_and_leave_nobody_without_where_there_are_enough(
    wanted: int, weights: list[float]
) -> None:
    shares = apportioned(wanted, {WorkerId(key): item for key, item in enumerate(weights)})
    assert sum(shares.values()) == wanted
    assert min(shares.values()) >= (wanted >= len(weights))


def test_out_of_step_the_fastest_gets_its_share_and_a_slower_one_less() -> None:
    for worker, count in ((ONE, 2), (TWO, 8)):
        asked = Lending(
            size=100,
            members=(ONE, TWO),
            borrowers=(worker,),
            wanted=8,
            unread=(Range(0, 100),),
            speeds={ONE: 5.0, TWO: 20.0},
        )
        assert Leased().lend(asked).lent == {worker: (Range(0, count),)}


# -- the order ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [DYNAMIC, LEASED])
def test_rounds_read_the_same_ranges_in_the_same_order_for_one_worker_and_for_seven(
    policy: str,
) -> None:
    def read_by(count: int) -> list[list[int]]:
        ledger = ledger_of(*map(WorkerId, range(1, count + 1)), policy=policy)
        rounds = []
        while not ledger._exhausted:
            rounds.append(sorted(positions(p for each in ledger.leases.values() for p in each)))
            go_through(ledger, **{f"w{n}": float(n) for n in range(1, count + 1)})
        return rounds

    assert read_by(1) == read_by(7) == [list(range(n, n + 20)) for n in range(0, 400, 20)]


# -- what the script asks for -------------------------------------------------------------------


def test_all_workers_ask_for_one_policy_that_is_built_in() -> None:
    ledger = ledger_of(ONE, TWO)
    for policy, reason in (("static", "is leased"), ("", "is leased"), ("acme", "no built-in")):
        ((_, answer),) = ledger.apply(Register(TWO, DATA, policy))
        assert isinstance(answer, Refused)
        assert reason in answer.reason


# -- foreseen -----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["dynamic", "static", "leased", "local"])
def test_what_is_foreseen_is_what_is_lent_where_nothing_changes(policy: str) -> None:
    ledger = ledger_of(ONE, TWO, policy=policy, ahead=3)
    go_through(ledger, w1=1.0, w2=2.0)
    while not ledger._exhausted:
        foreseen = {worker: ledger.turn(worker).ahead for worker in ledger.members}
        go_through(ledger, w1=1.0, w2=2.0)
        for worker, rounds in foreseen.items():
            if rounds:
                assert rounds[0] == ledger.turn(worker).samples


def test_nothing_is_foreseen_unless_somebody_asks_and_the_state_stays_the_same() -> None:
    ledger = ledger_of(ONE, TWO)
    assert ledger.turn(ONE).ahead == ()
    ledger.apply(Register(TWO, DATA, LEASED, 2))
    before = ledger.supply
    assert ledger.turn(ONE).ahead == ((Range(20, 30),), (Range(40, 50),))
    assert ledger.supply == before


# -- local --------------------------------------------------------------------------------------


def test_a_worker_reads_what_lies_on_its_node_then_nobodys_then_anothers() -> None:
    ledger = ledger_of(ONE, TWO, policy=LOCAL, data=DataSpec(30, 10, 1, 0))
    for worker, part in ((ONE, Range(20, 26)), (TWO, Range(10, 20))):
        assert ledger.apply(Hold(worker, 1, (part,))) == [(worker, Held())]
    read: dict[WorkerId, list[int]] = {ONE: [], TWO: []}
    go_through(ledger)  # lent before it was known
    while any(ledger.leases.values()):
        for worker, lease in ledger.leases.items():
            read[worker] += positions(lease)
        go_through(ledger)
    assert read[ONE] == [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]
    assert read[TWO] == list(range(10, 20))


@pytest.mark.parametrize(
    "parts",
    [
        (Range(5, 5),),
        (Range(5, 6), Range(4, 5)),
        (Range(5, 8), Range(7, 9)),
        tuple(Range(2 * n, 2 * n + 1) for n in range(MAX_LOCAL + 1)),
    ],
    ids=["empty", "out of order", "twice", "too many"],
)
def test_what_cannot_lie_on_a_node_is_refused(parts: tuple[Range, ...]) -> None:
    ledger = ledger_of(ONE, policy=LOCAL)
    ((_, answer),) = ledger.apply(Hold(ONE, 1, parts))
    assert isinstance(answer, Refused)


def test_a_late_copy_of_what_was_local_changes_nothing() -> None:
    ledger = ledger_of(ONE, policy=LOCAL)
    ledger.apply(Hold(ONE, 2, (Range(0, 9),)))
    ledger.apply(Hold(ONE, 1, (Range(50, 60),)))
    assert ledger.holds[ONE].parts == (Range(0, 9),)
    ledger.apply(Leave(ONE))
    assert ledger.holds == {}


@settings(REPRODUCIBLE)
@given(one=ranges, other=ranges)
def test_walking_along_two_lists_of_ranges_is_as_good_as_comparing_all(
    one: tuple[Range, ...], other: tuple[Range, ...]
) -> None:
    assert positions(common_sorted(one, other)) == positions(common(one, other))
    assert positions(less_sorted(one, other)) == positions(less(one, other))


@settings(REPRODUCIBLE)
@given(unread=ranges, here=ranges, there=ranges, wanted=st.integers(1, 30))
def test_local_lends_only_what_is_unread_and_as_much_as_is_wanted(
    unread: tuple[Range, ...], here: tuple[Range, ...], there: tuple[Range, ...], wanted: int
) -> None:
    if not unread:
        return
    members = (ONE, TWO, THREE)
    asked = Lending(
        size=100,
        members=members,
        borrowers=members,
        wanted=wanted,
        unread=unread,
        local={ONE: here, TWO: there},
    )
    lent = Counter(positions(p for each in Local().lend(asked).lent.values() for p in each))
    assert set(lent) <= set(positions(unread))
    assert sum(lent.values()) == len(lent) == min(wanted, count_of(unread))
