"""A job's curves: points in time, the newest in full, older ones ever farther apart."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from elasticps.core.ids import Round

MOST_POINTS = 2000
FULL_POINTS = 600
"""The newest ones, of which none is left out: ten minutes at one a second."""
THINNED_BY = 200
"""How many are left out at a time, so that it is rarely done."""


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """A job as its main worker was at ``unix_s``; the rates are since the point before.

    ``pushed_bytes_per_s`` is the main worker's, times the workers. ``staleness``: by how many
    rounds workers were apart, None where that is not known.
    """

    unix_s: float
    round: Round
    metrics: dict[str, float | None]
    rounds_per_s: float | None
    pushed_bytes_per_s: float | None
    workers: int
    staleness: int | None


class Series:
    """At most MOST_POINTS points, in order of time."""

    def __init__(self) -> None:
        self._points: list[Point] = []

    def add(self, point: Point) -> None:
        """The newest point."""
        self._points.append(point)
        if len(self._points) > MOST_POINTS:
            self._points = thinned(self._points)

    def merge(self, points: Iterable[Point]) -> None:
        """Take in what another has kept of the same job."""
        self._points = merged((self._points, points))

    def points(self, since_unix_s: float = 0.0) -> list[Point]:
        """Those after ``since_unix_s``, oldest first."""
        return [point for point in self._points if point.unix_s > since_unix_s]

    @property
    def newest_unix_s(self) -> float:
        """0.0 where there is no point."""
        return self._points[-1].unix_s if self._points else 0.0


def merged(kept: Iterable[Iterable[Point]]) -> list[Point]:
    """What several have kept of one job, as one: at most MOST_POINTS."""
    by_time = {point.unix_s: point for points in kept for point in points}
    points = [by_time[unix_s] for unix_s in sorted(by_time)]
    while len(points) > MOST_POINTS:
        points = thinned(points)
    return points


def thinned(points: list[Point]) -> list[Point]:
    """Fewer of the older points, the farther apart the older they are; the ends stay.

    A point costs the gap that it would leave, by its age. The cheapest ones go, no two beside each
    other at once.
    """
    newest = points[-1].unix_s
    costs = {
        index: (points[index + 1].unix_s - points[index - 1].unix_s)
        / (newest - points[index].unix_s)
        for index in range(1, len(points) - FULL_POINTS)
    }
    most = len(points) - MOST_POINTS + THINNED_BY
    gone: set[int] = set()
    for index in sorted(costs, key=costs.__getitem__):
        if len(gone) == most:
            break
        if index - 1 not in gone and index + 1 not in gone:
            gone.add(index)
    return [point for index, point in enumerate(points) if index not in gone]
