"""Tallies: equal exactly when they counted the same pushes, the same number of times."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.audit import Tally, Verdict, compare, mix
from elasticps.core.ids import Seq
from tests.support.properties import REPRODUCIBLE

WORD = st.integers(0, 2**64 - 1)
PUSHES = st.lists(st.integers(1, 30), max_size=20)


def tally(seqs: list[int]) -> Tally:
    total = Tally()
    for seq in seqs:
        total = total.plus(Seq(seq))
    return total


@settings(REPRODUCIBLE)
@given(WORD, WORD)
def test_mix_never_maps_two_words_to_one(one: int, other: int) -> None:
    assert (mix(one) == mix(other)) == (one == other)
    assert 0 <= mix(one) < 2**64


@settings(REPRODUCIBLE, max_examples=200)
@given(PUSHES, PUSHES)
def test_tallies_are_equal_exactly_for_the_same_multiset(one: list[int], other: list[int]) -> None:
    assert (tally(one) == tally(other)) == (Counter(one) == Counter(other))


@pytest.mark.parametrize(
    ("acknowledged", "applied", "lost", "duplicated"),
    [
        ([], [], 0, 0),
        ([1, 2, 3], [3, 1, 2], 0, 0),
        ([1, 2, 3], [1, 3], 1, 0),
        ([1, 2, 3], [], 3, 0),
        ([1, 2], [1, 2, 2], 0, 1),
        ([], [1, 1], 0, 2),
        ([1, 2, 3], [1, 1, 3], 1, 1),
        ([1, 4], [2, 3], 1, 1),
    ],
)
def test_an_audit_counts_losses_and_duplicates(
    acknowledged: list[int], applied: list[int], lost: int, duplicated: int
) -> None:
    verdict = compare(tally(acknowledged), tally(applied))
    assert verdict == Verdict(len(acknowledged), lost, duplicated)


@settings(REPRODUCIBLE, max_examples=200)
@given(PUSHES, PUSHES)
def test_an_audit_is_clean_only_when_all_was_applied_once(
    acknowledged: list[int], applied: list[int]
) -> None:
    verdict = compare(tally(acknowledged), tally(applied))
    clean = verdict.lost == verdict.duplicated == 0
    assert clean == (Counter(acknowledged) == Counter(applied))


def test_verdicts_of_blocks_add_up() -> None:
    total = Verdict(3, 1, 0).plus(Verdict(4, 0, 2)).plus(Verdict())
    assert total == Verdict(7, 1, 2)
