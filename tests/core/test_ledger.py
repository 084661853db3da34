"""The ledger: rounds are whole, samples are neither lost nor repeated, everybody is answered."""

from __future__ import annotations

import msgspec
import pytest

from elasticps.core.commands import (
    Admitted,
    Answer,
    Command,
    Committed,
    Cut,
    Initialized,
    Join,
    Leave,
    Left,
    Observe,
    Refused,
    Regenerated,
    Register,
    Registered,
    Through,
    Vote,
)
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.ranges import DataSpec, Range, Supply
from elasticps.core.replica import Commit
from tests.support.ledger_answers import asked, only
from tests.support.ledger_world import encoded

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)
DATA = DataSpec(size=10, batch_size=4, epochs=1, seed=0)


def vote(worker: WorkerId, number: int, generation: int, **flags: bool) -> Vote:
    return Vote(worker, Round(number), Generation(generation), **flags)


def ledger_of(*workers: WorkerId, data: DataSpec | None = None) -> Ledger:
    """A ledger whose members are ``workers``, at the start of round 1 under generation 1.

    With ``data``, which all of them read, it is generation 2.
    """
    ledger = Ledger(start_workers=len(workers))
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    if data is not None:
        for worker in workers:
            ledger.apply(Register(worker, data))
    return ledger


def test_a_ledger_knows_whom_the_others_wait_for() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    assert ledger.awaited == []
    ledger.apply(vote(TWO, 1, 1))
    assert ledger.awaited == [ONE, THREE]
    ledger.apply(vote(ONE, 1, 1))
    assert ledger.awaited == [THREE]
    ledger.apply(vote(THREE, 1, 1))
    assert ledger.awaited == []


# -- the start ----------------------------------------------------------------------------------


def test_a_job_starts_when_enough_workers_have_come_and_one_initializes() -> None:
    ledger = Ledger(start_workers=2)
    assert ledger.apply(Join(ONE)) == []
    admitted = only(ledger.apply(Join(TWO)), ONE)
    assert isinstance(admitted, Admitted)
    assert (admitted.initialize, admitted.commit) == (True, None)
    assert ledger.apply(Join(TWO)) == []
    answers = ledger.apply(Initialized(ONE))
    assert asked(answers) == [ONE, TWO]
    for rank, (_, answer) in enumerate(answers):
        assert isinstance(answer, Admitted)
        assert not answer.initialize
        assert (answer.turn.rank, answer.turn.world, answer.turn.round) == (rank, 2, 1)


def test_when_the_initializer_dies_the_next_worker_initializes() -> None:
    ledger = Ledger(start_workers=2)
    ledger.apply(Join(ONE))
    ledger.apply(Join(TWO))
    answers = ledger.apply(Observe((TWO,), 5))
    assert asked(answers) == [TWO]
    assert isinstance(answers[0][1], Admitted)
    assert answers[0][1].initialize
    assert isinstance(only(ledger.apply(Initialized(ONE)), ONE), Refused)
    assert isinstance(only(ledger.apply(Initialized(TWO)), TWO), Admitted)


def test_a_joiner_is_admitted_with_the_next_commit() -> None:
    ledger = ledger_of(ONE)
    assert ledger.apply(Join(TWO)) == []
    answers = ledger.apply(vote(ONE, 1, 1))
    assert asked(answers) == [ONE, TWO]
    admitted = only(answers, TWO)
    assert isinstance(admitted, Admitted)
    assert admitted.commit == Commit(Round(1), Generation(1), (ONE,))
    assert (admitted.turn.round, admitted.turn.generation, admitted.turn.rank) == (2, 2, 1)


def test_joiners_are_admitted_at_once_when_nobody_is_left() -> None:
    ledger = ledger_of(ONE)
    ledger.apply(Join(TWO))
    answers = ledger.apply(Leave(ONE))
    assert asked(answers) == [TWO, ONE]
    assert isinstance(only(answers, TWO), Admitted)
    assert isinstance(only(answers, ONE), Left)


# -- rounds -------------------------------------------------------------------------------------


def test_a_round_is_committed_when_all_have_voted_in_rank_order() -> None:
    data = DataSpec(size=9, batch_size=2, epochs=1, seed=0)
    ledger = ledger_of(ONE, TWO, THREE, data=data)
    assert ledger.apply(vote(TWO, 1, 2)) == []
    assert ledger.apply(vote(ONE, 1, 2)) == []
    answers = ledger.apply(vote(THREE, 1, 2, contributes=False))
    assert asked(answers) == [ONE, TWO, THREE]
    for worker, answer in answers:
        assert isinstance(answer, Committed)
        assert answer.commit == Commit(Round(1), Generation(2), (ONE, TWO))
        assert answer.counted == (worker != THREE)


def test_a_vote_that_disagrees_with_what_was_lent_is_refused() -> None:
    """The blocks wait for as many pushes as there are members with samples."""
    ledger = ledger_of(ONE, TWO)
    assert isinstance(only(ledger.apply(vote(ONE, 1, 1, contributes=False)), ONE), Refused)
    ledger = ledger_of(ONE, TWO, data=DataSpec(size=9, batch_size=1, epochs=1, seed=0))
    assert isinstance(only(ledger.apply(vote(TWO, 1, 2)), TWO), Refused)


def test_a_step_of_who_does_not_read_what_the_others_read_is_refused() -> None:
    """It would be lent samples that nobody reads. The generation tells it that there are some."""
    ledger = ledger_of(ONE, TWO)
    assert ledger.generation == 1
    ledger.apply(Register(ONE, DATA))
    assert isinstance(only(ledger.apply(vote(TWO, 1, 1)), TWO), Regenerated)
    assert isinstance(only(ledger.apply(vote(TWO, 1, 2)), TWO), Refused)
    ledger.apply(Register(TWO, DATA))
    assert ledger.generation == 2
    assert ledger.apply(vote(TWO, 1, 2)) == []


def test_a_death_opens_a_generation_and_those_who_voted_vote_again() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    ledger.apply(vote(ONE, 1, 1))
    answers = ledger.apply(Observe((ONE, TWO), 9))
    assert asked(answers) == [ONE]
    assert isinstance(answers[0][1], Regenerated)
    assert (answers[0][1].turn.generation, answers[0][1].turn.world) == (2, 2)
    assert isinstance(only(ledger.apply(vote(TWO, 1, 1)), TWO), Regenerated)
    assert ledger.apply(vote(TWO, 1, 2)) == []
    committed = only(ledger.apply(vote(ONE, 1, 2)), ONE)
    assert isinstance(committed, Committed)
    assert committed.commit == Commit(Round(1), Generation(2), (ONE, TWO))


@pytest.mark.parametrize(
    ("late", "expected"),
    [
        (vote(ONE, 1, 1), Committed),
        (vote(ONE, 0, 1), Refused),
        (vote(ONE, 3, 1), Refused),
        (vote(ONE, 2, 0), Regenerated),
        (vote(THREE, 1, 1), Refused),
        (Initialized(THREE), Refused),
        (Register(THREE, DATA), Refused),
        (Leave(THREE), Left),
        (Join(ONE), Admitted),
    ],
)
def test_a_question_out_of_turn_has_its_answer(late: Command, expected: type[Answer]) -> None:
    ledger = ledger_of(ONE, TWO)
    for worker in (ONE, TWO):
        ledger.apply(vote(worker, 1, 1))
    assert isinstance(only(ledger.apply(late), late.worker), expected)  # type: ignore[union-attr]
    assert (ledger.round, ledger.votes, ledger.members) == (1, {}, [ONE, TWO])


def test_a_worker_that_leaves_with_a_round_counts_in_it_and_hears_so_however_late() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(ONE, 1, 1, leaving=True))
    first = only(ledger.apply(vote(TWO, 1, 1)), ONE)
    assert first == Committed(Commit(Round(1), Generation(1), (ONE, TWO)), None)
    ledger.apply(vote(TWO, 2, 2))
    ledger.apply(Observe((ONE, TWO), 8))
    assert only(ledger.apply(vote(ONE, 1, 1, leaving=True)), ONE) == first
    assert isinstance(only(ledger.apply(vote(ONE, 2, 2)), ONE), Refused)
    ledger.apply(Observe((TWO,), 9))
    assert ledger.farewells == {}
    assert ledger.departed == []


def test_a_vote_that_did_not_count_is_never_answered_with_the_commit() -> None:
    """Declared dead in the round, it would believe that its push was applied."""
    ledger = ledger_of(ONE, TWO)
    ledger.apply(vote(TWO, 1, 1))
    ledger.apply(Observe((ONE,), 9))
    assert isinstance(only(ledger.apply(vote(ONE, 1, 2)), ONE), Committed)
    assert isinstance(only(ledger.apply(vote(TWO, 1, 1)), TWO), Refused)


def test_an_old_list_of_the_living_removes_nobody() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(Observe((ONE, TWO), 9))
    before = encoded(ledger)
    assert ledger.apply(Observe((ONE,), 8)) == []
    assert encoded(ledger) == before
    assert isinstance(only(ledger.apply(Join(THREE)), THREE), Refused)
    assert ledger.apply(Join(WorkerId(10))) == []


def test_one_that_left_stays_gone_though_a_list_is_older_than_itself() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(Join(THREE))
    ledger.apply(Leave(THREE))
    ledger.apply(Observe((ONE, TWO), 2))
    assert isinstance(only(ledger.apply(Join(THREE)), THREE), Refused)


# -- data ---------------------------------------------------------------------------------------


def test_a_batch_is_lent_in_rank_order_and_what_a_dead_worker_held_is_lent_again() -> None:
    ledger = ledger_of(ONE, TWO, data=DATA)
    assert ledger.leases == {ONE: (Range(0, 2),), TWO: (Range(2, 4),)}
    ledger.apply(vote(ONE, 1, 2))
    ledger.apply(Observe((ONE,), 9))
    assert ledger.leases == {ONE: (Range(0, 2),)}
    ledger.apply(vote(ONE, 1, 3))
    assert ledger.leases == {ONE: (Range(2, 4), Range(4, 6))}


def test_data_are_not_exhausted_while_a_dead_workers_samples_wait_to_be_lent_again() -> None:
    ledger = ledger_of(ONE, TWO, data=DataSpec(size=1, batch_size=4, epochs=1, seed=0))
    assert ledger.leases == {ONE: (Range(0, 1),), TWO: ()}
    ledger.apply(Observe((TWO,), 9))
    registered = only(ledger.apply(Register(TWO, ledger.data or DATA)), TWO)
    assert isinstance(registered, Registered)
    assert not registered.turn.exhausted
    ledger.apply(vote(TWO, 1, 3, contributes=False))
    assert ledger.leases == {TWO: (Range(0, 1),)}
    committed = only(ledger.apply(vote(TWO, 2, 3)), TWO)
    assert isinstance(committed, Committed)
    assert committed.turn is not None
    assert committed.turn.exhausted


@pytest.mark.parametrize(
    "data",
    [
        DataSpec(size=0, batch_size=4, epochs=1, seed=0),
        DataSpec(size=10, batch_size=0, epochs=1, seed=0),
        DataSpec(size=10, batch_size=-1, epochs=1, seed=0),
        DataSpec(size=10, batch_size=4, epochs=0, seed=0),
    ],
)
def test_data_without_a_sample_are_refused_and_change_nothing(data: DataSpec) -> None:
    ledger = ledger_of(ONE)
    before = encoded(ledger)
    assert isinstance(only(ledger.apply(Register(ONE, data)), ONE), Refused)
    assert encoded(ledger) == before


def test_all_workers_must_read_the_same_data_and_say_so_before_the_first_step() -> None:
    ledger = ledger_of(ONE, TWO, data=DATA)
    assert isinstance(only(ledger.apply(Register(TWO, DATA)), TWO), Registered)
    other = msgspec.structs.replace(DATA, seed=1)
    assert isinstance(only(ledger.apply(Register(TWO, other)), TWO), Refused)
    late = ledger_of(ONE)
    late.apply(vote(ONE, 1, 1))
    assert isinstance(only(late.apply(Register(ONE, DATA)), ONE), Refused)


# -- the end of the training ---------------------------------------------------------------------

ALL_READ = DataSpec(4, 2, 1, 0)


@pytest.mark.parametrize("waits", [True, False], ids=["waits for its end", "comes later"])
def test_nobody_is_the_main_worker_after_the_one_that_came_to_the_end(*, waits: bool) -> None:
    ledger = with_all_read(ONE)
    if waits:
        assert ledger.apply(Join(TWO)) == []
    answers = ledger.apply(Leave(ONE, through=True))
    if not waits:
        answers = ledger.apply(Join(TWO))
    assert (TWO, Through()) in answers
    assert ledger.apply(Join(TWO)) == [(TWO, Through())]
    assert ledger.members == []


@pytest.mark.parametrize(
    ("end", "is_main"),
    [(Leave(ONE, through=True), False), (Leave(ONE), True), (Observe((TWO,), 9), True)],
    ids=["it came to the end", "it left", "it died"],
)
def test_a_member_that_is_late_is_the_main_worker_unless_there_was_one(
    end: Command, *, is_main: bool
) -> None:
    """It is seated with the first, and comes to its data when that one has ended already."""
    ledger = with_all_read(ONE, TWO)
    ledger.apply(end)
    ((_, answer),) = ledger.apply(Register(TWO, ALL_READ))
    assert isinstance(answer, Registered)
    assert answer.turn.rank == 0
    assert answer.turn.is_main == is_main


@pytest.mark.parametrize("end", [Leave(ONE), Observe((TWO,), 9)], ids=["another left", "it died"])
def test_who_joins_after_any_other_end_is_the_main_worker(end: Command) -> None:
    ledger = with_all_read(ONE)
    ledger.apply(end)
    (answer,) = [answer for name, answer in ledger.apply(Join(TWO)) if name == TWO]
    assert isinstance(answer, Admitted)
    assert answer.turn.rank == 0


def test_a_main_worker_that_leaves_before_the_end_has_a_follower() -> None:
    ledger = ledger_of(ONE, data=DATA)
    ledger.apply(Leave(ONE, through=True))
    ((_, answer),) = ledger.apply(Join(TWO))
    assert isinstance(answer, Admitted)


def with_all_read(worker: WorkerId, *others: WorkerId) -> Ledger:
    """A ledger that goes on from a checkpoint with all data read, as ``worker`` knows already."""
    ledger = Ledger(start_workers=1 + len(others))
    for each in (worker, *others):
        ledger.apply(Join(each))
    ledger.apply(Initialized(worker, Cut(Round(2), ALL_READ, Supply(4))))
    (answer,) = [
        answer for name, answer in ledger.apply(Register(worker, ALL_READ)) if name == worker
    ]
    assert isinstance(answer, Registered)
    assert answer.turn.exhausted
    return ledger
