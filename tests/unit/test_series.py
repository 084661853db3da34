"""A job's curves stay small, keep their newest part whole and their oldest part there."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticps.core.ids import Round
from elasticps.daemon.series import FULL_POINTS, MOST_POINTS, Point, Series, merged
from tests.support.properties import REPRODUCIBLE


def point(second: float) -> Point:
    return Point(
        unix_s=second,
        round=Round(int(second)),
        metrics={"loss": 1 / second},
        rounds_per_s=1.0,
        pushed_bytes_per_s=None,
        workers=1,
        staleness=0,
    )


def series(seconds: int) -> Series:
    made = Series()
    for second in range(1, seconds + 1):
        made.add(point(float(second)))
    return made


def gaps(points: list[Point]) -> list[float]:
    return [after.unix_s - before.unix_s for before, after in pairwise(points)]


def test_short_series_is_whole() -> None:
    assert series(MOST_POINTS).points() == [point(float(n)) for n in range(1, MOST_POINTS + 1)]


@pytest.mark.parametrize("hours", [1, 6, 24])
def test_long_series_is_bounded_whole_at_its_end_and_reaches_back_to_its_begin(hours: int) -> None:
    points = series(hours * 3600).points()

    assert len(points) <= MOST_POINTS
    assert points[0].unix_s == 1.0
    assert points[-1].unix_s == hours * 3600.0
    assert set(gaps(points[-FULL_POINTS:])) == {1.0}
    ages = [points[-1].unix_s - each.unix_s for each in points]
    # A point's distance to the next is a small part of its age, wherever it lies.
    assert all(gap <= max(2.0, age / 50) for gap, age in zip(gaps(points), ages, strict=False))


def test_only_points_after_a_moment_are_given() -> None:
    assert [each.unix_s for each in series(10).points(8.0)] == [9.0, 10.0]
    assert series(0).newest_unix_s == 0.0
    assert series(10).newest_unix_s == 10.0


def test_merging_again_what_is_known_changes_nothing() -> None:
    kept = series(20_000)
    before = kept.points()
    kept.merge(before[::3])
    assert kept.points() == before


@REPRODUCIBLE
@given(cuts=st.lists(st.tuples(st.integers(1, 9000), st.integers(1, 3000)), min_size=1, max_size=4))
def test_merged_points_are_in_order_bounded_and_without_repeats(
    cuts: list[tuple[int, int]],
) -> None:
    kept = [[point(float(first + n)) for n in range(length)] for first, length in cuts]
    points = merged(kept)
    seconds = [each.unix_s for each in points]
    assert seconds == sorted(set(seconds))
    assert len(points) <= MOST_POINTS
    assert {seconds[0], seconds[-1]} == {
        min(part[0].unix_s for part in kept),
        max(part[-1].unix_s for part in kept),
    }
