"""A cut: where a job stands between two rounds, and a job that goes on from it."""

from __future__ import annotations

import pytest

from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Admitted,
    Cut,
    Initialized,
    Join,
    Refused,
    Register,
    Registered,
    Vote,
)
from elasticps.core.ids import Generation, Round, Seq, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.ranges import DataSpec, Range, Supply
from elasticps.core.roster import Roster

ONE, TWO = WorkerId(1), WorkerId(2)
DATA = DataSpec(size=10, batch_size=4, epochs=2, seed=3)
CUT = Cut(Round(7), DATA, Supply(6, (Range(0, 1),)))
LEDGERS = [
    pytest.param(lambda: Ledger(start_workers=2), id="sync"),
    pytest.param(lambda: ClockLedger(start_workers=2, staleness=1), id="bounded"),
    pytest.param(lambda: ClockLedger(start_workers=2), id="async"),
]


def started(ledger: Roster, cut: Cut | None = None) -> Roster:
    ledger.apply(Join(ONE))
    ledger.apply(Join(TWO))
    ledger.apply(Initialized(ONE, cut))
    return ledger


def test_what_is_lent_for_the_round_under_way_counts_as_not_read() -> None:
    ledger = started(Ledger(start_workers=2))
    for worker in (ONE, TWO):
        ledger.apply(Register(worker, DATA))
    assert ledger.cut() == Cut(Round(0), DATA, Supply(0))
    for worker in (ONE, TWO):
        ledger.apply(Vote(worker, Round(1), Generation(2)))
    assert ledger.leases == {ONE: (Range(4, 6),), TWO: (Range(6, 8),)}
    assert ledger.cut() == Cut(Round(1), DATA, Supply(4))


@pytest.mark.parametrize("make", LEDGERS)
def test_a_job_goes_on_with_the_round_and_the_samples_after_the_cut(make) -> None:
    ledger = started(make(), CUT)
    admitted = [answer for _, answer in ledger.apply(Join(TWO))]
    assert isinstance(admitted[0], Admitted)
    assert admitted[0].turn.round == 8
    (_, registered), *_ = ledger.apply(Register(ONE, DATA))
    assert isinstance(registered, Registered)
    first = [sample for part in registered.turn.samples for sample in (part.start, part.stop)]
    assert first[:2] == [0, 1]
    assert ledger.supply.position > 6


@pytest.mark.parametrize("make", LEDGERS)
def test_a_resumed_job_may_not_read_other_data(make) -> None:
    ledger = started(make(), CUT)
    other = DataSpec(size=11, batch_size=4, epochs=2, seed=3)
    assert isinstance(ledger.apply(Register(ONE, other))[0][1], Refused)
    longer = DataSpec(size=10, batch_size=2, epochs=5, seed=3)
    assert isinstance(ledger.apply(Register(ONE, longer))[0][1], Registered)


@pytest.mark.parametrize("make", LEDGERS)
def test_a_second_initializer_does_not_move_the_job(make) -> None:
    ledger = started(make(), CUT)
    before = ledger.cut()
    ledger.apply(Initialized(ONE, Cut(Round(9), None, Supply())))
    assert ledger.cut() == before


def test_a_resumed_round_proves_itself_to_the_blocks() -> None:
    ledger = started(Ledger(start_workers=2), CUT)
    assert ledger.last is not None
    assert (ledger.last.round, ledger.last.contributors) == (7, ())
    answers = [
        answer
        for worker in (ONE, TWO)
        for _, answer in ledger.apply(Vote(worker, Round(8), Generation(1), seq=Seq(1)))
    ]
    assert {answer.commit.round for answer in answers} == {8}  # type: ignore[union-attr]
