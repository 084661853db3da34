"""The checkers: a good history passes, and each kind of damage is seen for what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.chaos.checkers import Final, Verdict, judge
from tests.chaos.journal import Journals, Writer, bit_of
from tests.chaos.model import BLOCK_BYTES, PLACES, SCALE

WORKERS = 3
ROUNDS = 5
AMOUNT = 2


def history(directory: Path) -> tuple[Journals, Final]:
    """Three lives, five whole rounds, and a push of the first life whose outcome nobody knows."""
    final = {
        "places": np.zeros(PLACES),
        "bits": np.zeros(2 * BLOCK_BYTES // 8),
        "credit": np.zeros(BLOCK_BYTES // 8),
        "debit": np.zeros(BLOCK_BYTES // 8),
    }
    writers = [Writer(directory, f"n{number}.1", number) for number in range(WORKERS)]
    mask = sum(bit_of(writer.life) for writer in writers)
    for round_ in range(1, ROUNDS + 1):
        for writer in writers:
            place = writer.place()
            writer.tries(place, AMOUNT, round_)
            writer.told(place, round_, WORKERS, mask)
            final["places"][place] = SCALE / WORKERS
        final["bits"] += SCALE * mask / WORKERS
        final["credit"] += SCALE * AMOUNT
        final["debit"] -= SCALE * AMOUNT
    writers[0].tries(writers[0].place(), AMOUNT, ROUNDS + 1)
    journals = Journals(directory)
    journals.read()
    return journals, final


@pytest.fixture
def lived(tmp_path: Path) -> tuple[Journals, Final]:
    return history(tmp_path)


def verdict(lived: tuple[Journals, Final], consistency: str = "sync") -> Verdict:
    return judge(*lived, consistency, staleness=1)


def test_good_history_passes(lived: tuple[Journals, Final]) -> None:
    found = verdict(lived)

    assert (found.acknowledged, found.unknown) == (WORKERS * ROUNDS, 1)
    assert (found.violations, found.words) == (0, [])


def test_acknowledged_push_that_is_not_there_is_lost(lived: tuple[Journals, Final]) -> None:
    _, final = lived
    final["places"][np.flatnonzero(final["places"])[0]] = 0

    assert verdict(lived).lost == 1


@pytest.mark.parametrize("factor", [2, 3])
def test_push_that_is_there_more_than_once_is_a_duplicate(
    lived: tuple[Journals, Final], factor: int
) -> None:
    _, final = lived
    final["places"][np.flatnonzero(final["places"])[0]] *= factor

    assert verdict(lived).duplicated == 1


def test_push_of_unknown_outcome_may_be_there_once_and_not_twice(
    lived: tuple[Journals, Final],
) -> None:
    journals, final = lived
    (unknown,) = [push for push in journals.lives[0].pushes.values() if push.count is None]
    final["places"][unknown.place] = SCALE
    final["credit"] += SCALE * AMOUNT
    final["debit"] -= SCALE * AMOUNT
    assert verdict(lived).violations == 0

    final["places"][unknown.place] = 2 * SCALE

    assert verdict(lived).duplicated == 1


def test_number_that_nobody_pushed_is_a_violation(lived: tuple[Journals, Final]) -> None:
    _, final = lived
    final["places"][PLACES - 1] = SCALE

    assert verdict(lived).duplicated == 1


def test_block_that_missed_a_round_tears_it(lived: tuple[Journals, Final]) -> None:
    _, final = lived
    final["bits"][0] -= SCALE

    assert verdict(lived).torn_rounds == 1


def test_round_that_two_workers_saw_differently_is_torn(lived: tuple[Journals, Final]) -> None:
    journals, _ = lived
    next(iter(journals.lives[1].pushes.values())).mask = 1

    assert verdict(lived).torn_rounds == 1


def test_half_of_a_push_breaks_the_bank(lived: tuple[Journals, Final]) -> None:
    _, final = lived
    final["credit"] += SCALE

    assert verdict(lived).bank_violations >= 1


def test_what_a_worker_saw_go_wrong_counts(tmp_path: Path) -> None:
    writer = Writer(tmp_path, "n9.1", 9)
    for kind in ("version", "bank", "torn"):
        writer.wrong(kind, "seen")

    found = verdict(history(tmp_path))

    assert (found.version_violations, found.bank_violations, found.torn_rounds) == (1, 1, 1)


@pytest.mark.parametrize("stays", [True, False])
def test_worker_that_ran_ahead_of_a_slow_one_breaks_the_bound(
    tmp_path: Path, *, stays: bool
) -> None:
    """One that slept until it was declared dead is no slow member: it is never told of a step."""
    fast, slow = Writer(tmp_path, "n1.1", 1), Writer(tmp_path, "n2.1", 2)
    slow.tries(slow.place(), AMOUNT, 1)
    for round_ in range(1, 5):
        fast.tries(fast.place(), AMOUNT, round_)
    place = slow.place()
    slow.tries(place, AMOUNT, 2)
    if stays:
        slow.told(place, 2, 1, None)
    journals = Journals(tmp_path)
    journals.read()
    final = {"places": np.zeros(PLACES), "credit": np.zeros(1), "debit": np.zeros(1)}

    assert verdict((journals, final), "bounded").version_violations == int(stays)
    assert verdict((journals, final), "async").version_violations == 0
