"""The bulletin: notes that go with their writer, never change, and are bounded."""

from __future__ import annotations

import pytest

from elasticps.core.bulletin import MAX_KEY_BYTES, MAX_NOTE_BYTES, MAX_NOTES
from elasticps.core.commands import (
    Admitted,
    Command,
    Found,
    Initialized,
    Join,
    Leave,
    Observe,
    Publish,
    Published,
    Refused,
    Regenerated,
    Register,
    Regroup,
    Vote,
)
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.ledger import Ledger
from elasticps.core.ranges import DataSpec
from tests.support.ledger_world import encoded

ONE, TWO, THREE = WorkerId(1), WorkerId(2), WorkerId(3)


def ledger_of(*workers: WorkerId) -> Ledger:
    """A ledger whose members, in generation 1, have each written where they listen."""
    ledger = Ledger(start_workers=len(workers))
    for worker in workers:
        assert ledger.apply(Publish(worker, "address", b"at %d" % worker)) == [
            (worker, Published())
        ]
    for worker in workers:
        ledger.apply(Join(worker))
    ledger.apply(Initialized(workers[0]))
    return ledger


def test_a_note_that_is_written_before_its_worker_joins_is_found_with_the_members() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(Publish(THREE, "address", b"at 3"))
    assert ledger.found("address") == Found(Generation(1), (ONE, TWO), {ONE: b"at 1", TWO: b"at 2"})
    assert ledger.found("nothing").notes == {}


@pytest.mark.parametrize(
    "end",
    [
        Leave(TWO),
        Observe((ONE,), 9),
        Vote(TWO, Round(1), Generation(1), leaving=True),
    ],
)
def test_a_note_goes_with_its_worker(end: Command) -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(end)
    ledger.apply(Vote(ONE, Round(1), ledger.generation))
    assert set(ledger.notes) == {ONE}
    late = ledger.apply(Publish(TWO, "address", b"at 2"))
    assert isinstance(late[0][1], Refused)
    assert set(ledger.notes) == {ONE}


def test_a_note_of_one_that_died_before_it_joined_goes_when_the_living_are_listed() -> None:
    ledger = ledger_of(ONE)
    ledger.apply(Publish(THREE, "address", b"at 3"))
    ledger.apply(Observe((ONE,), 9))
    assert set(ledger.notes) == {ONE}


def test_a_late_copy_brings_no_older_note_back() -> None:
    ledger = ledger_of(ONE)
    before = encoded(ledger)
    assert ledger.apply(Publish(ONE, "address", b"at 1")) == [(ONE, Published())]
    refused = ledger.apply(Publish(ONE, "address", b"elsewhere"))
    assert refused == [(ONE, Refused("there is another note under 'address'"))]
    assert encoded(ledger) == before


@pytest.mark.parametrize(
    ("key", "note"),
    [("", b""), ("k" * (MAX_KEY_BYTES + 1), b""), ("key", b"n" * (MAX_NOTE_BYTES + 1))],
)
def test_a_note_beyond_its_limits_is_refused_and_changes_nothing(key: str, note: bytes) -> None:
    ledger = ledger_of(ONE)
    before = encoded(ledger)
    assert isinstance(ledger.apply(Publish(ONE, key, note))[0][1], Refused)
    assert encoded(ledger) == before


def test_a_worker_has_so_many_notes_and_no_more() -> None:
    ledger = Ledger(start_workers=1)
    answers = [ledger.apply(Publish(ONE, str(n), b""))[0][1] for n in range(MAX_NOTES + 1)]
    assert [isinstance(answer, Published) for answer in answers] == [True] * MAX_NOTES + [False]


# -- beginning a round anew ---------------------------------------------------------------------


def test_a_failed_exchange_opens_a_generation_of_the_same_members_and_all_hear_of_it() -> None:
    ledger = ledger_of(ONE, TWO, THREE)
    ledger.apply(Vote(TWO, Round(1), Generation(1), pushed=False))
    answers = ledger.apply(Regroup(ONE, Generation(1)))
    assert [worker for worker, _ in answers] == [TWO, ONE]
    assert all(isinstance(answer, Regenerated) for _, answer in answers)
    assert (ledger.members, ledger.generation) == ([ONE, TWO, THREE], 2)
    assert ledger.votes == {}


@pytest.mark.parametrize("waits_before", [True, False])
def test_members_who_are_too_few_go_on_with_who_joins_in_the_same_round(waits_before: bool) -> None:
    """The samples that are lent for the round stay with whom they were lent to."""
    ledger = ledger_of(ONE, TWO)
    for worker in (ONE, TWO):
        ledger.apply(Register(worker, DataSpec(size=10, batch_size=4, epochs=1, seed=0)))
    lent, generation = dict(ledger.leases), ledger.generation
    word = Regroup(ONE, generation, seats=True)
    if waits_before:
        assert ledger.apply(Join(THREE)) == []
        answers = ledger.apply(word)
    else:
        (answer,) = ledger.apply(word)
        assert isinstance(answer[1], Regenerated)
        assert (answer[1].turn.generation, ledger.members) == (generation, [ONE, TWO])
        answers = ledger.apply(Join(THREE))
    admitted = dict(answers)[THREE]
    assert isinstance(admitted, Admitted)
    assert (admitted.turn.round, admitted.turn.world) == (Round(1), 3)
    assert not admitted.turn.contributes
    assert (ledger.members, ledger.generation) == ([ONE, TWO, THREE], generation + 1)
    assert {worker: ledger.leases[worker] for worker in (ONE, TWO)} == lent
    assert ledger.leases[THREE] == ()
    before = encoded(ledger)
    ledger.apply(word)
    assert encoded(ledger) == before


def test_who_joins_waits_for_the_rounds_end_where_nobody_is_short_of_members() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(Regroup(ONE, ledger.generation, seats=True))
    ledger.apply(Regroup(TWO, ledger.generation))
    assert ledger.apply(Join(THREE)) == []
    assert ledger.members == [ONE, TWO]


def test_of_many_who_say_that_it_failed_the_first_counts() -> None:
    ledger = ledger_of(ONE, TWO)
    ledger.apply(Regroup(ONE, Generation(1)))
    before = encoded(ledger)
    for worker in (TWO, ONE):
        (answer,) = ledger.apply(Regroup(worker, Generation(1)))
        assert isinstance(answer[1], Regenerated)
        assert answer[1].turn.generation == 2
    assert encoded(ledger) == before
    assert isinstance(ledger.apply(Regroup(THREE, Generation(2)))[0][1], Refused)
