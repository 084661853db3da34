"""Sums that never fall, of counts by processes that begin at 0 and end without a word."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Mapping, Sequence
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)


class Totals(Generic[Name]):
    """Sums by name over all lives; ``heard`` with each life's newest counts."""

    def __init__(self) -> None:
        self.sums: dict[Name, float] = {}
        self._last: dict[Hashable, Mapping[Name, float]] = {}

    def heard(self, life: Hashable, counts: Mapping[Name, float]) -> None:
        """Add what ``life`` has counted since it was heard last."""
        last = self._last.get(life, {})
        for name, count in counts.items():
            grown = max(0, count - last.get(name, 0))
            self.sums[name] = self.sums.get(name, 0) + grown
        self._last[life] = counts

    def gone(self, life: Hashable) -> None:
        """It counts no more; if it comes back, it begins at 0."""
        self._last.pop(life, None)

    def of(self, name: Name) -> float:
        return self.sums.get(name, 0)


class Buckets:
    """A histogram: how many observations each bound holds, and their sum."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """How many were at most each bound, as Prometheus wants them: the last bound is +Inf."""
        rows, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self._counts, strict=True):
            so_far += count
            rows.append((bound, float(so_far)))
        return rows
