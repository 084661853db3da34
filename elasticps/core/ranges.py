"""Data leases as arithmetic: which samples a round reads, and how its workers share them.

A sample's position counts over all passes: position ``p`` is the sample at ``p % size`` in the
order of data epoch ``p // size``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import msgspec


class DataSpec(msgspec.Struct, frozen=True, array_like=True):
    """A map-style data set of ``size`` samples, read ``epochs`` times in global batches."""

    size: int
    batch_size: int
    epochs: int
    seed: int

    def __str__(self) -> str:
        return (
            f"{self.size} samples in batches of {self.batch_size} for {self.epochs} epochs "
            f"with seed {self.seed}"
        )


class Range(msgspec.Struct, frozen=True, array_like=True):
    """Positions ``[start, stop)``."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class Supply(msgspec.Struct, frozen=True, array_like=True):
    """Where fresh positions begin, and the ranges that dead workers gave back, oldest first."""

    position: int = 0
    given_back: tuple[Range, ...] = ()

    def returned(self, ranges: tuple[Range, ...]) -> Supply:
        return Supply(self.position, self.given_back + ranges)

    def unread(self, data: DataSpec) -> tuple[Range, ...]:
        """What may be lent: what was given back, then fresh positions up to their epoch's end."""
        end = min((self.position // data.size + 1) * data.size, data.size * data.epochs)
        fresh = (Range(self.position, end),) if self.position < end else ()
        return self.given_back + fresh

    def without(self, lent: Iterable[Range]) -> Supply:
        """The rest when ``lent``, disjoint parts of ``unread``, are taken out."""
        parts = list(lent)
        stop = max((part.stop for part in parts), default=0)
        rest = self.given_back
        if stop > self.position:
            rest += (Range(self.position, stop),)
        return Supply(max(self.position, stop), less(rest, parts))

    def spent(self, data: DataSpec) -> bool:
        """True when every sample of every data epoch is lent and none was given back."""
        return not self.given_back and self.position >= data.size * data.epochs


def take(data: DataSpec, supply: Supply) -> tuple[tuple[Range, ...], Supply]:
    """One global batch: what was given back first, then fresh positions up to the epoch's end.

    Empty when every sample of every epoch has been lent.
    """
    batch = first_of(supply.unread(data), data.batch_size)
    return batch, supply.without(batch)


def first_of(ranges: tuple[Range, ...], count: int) -> tuple[Range, ...]:
    """The first ``count`` samples of ``ranges``, or all that there are."""
    return _cut(ranges, 0, count)


def less(ranges: Iterable[Range], taken: Iterable[Range]) -> tuple[Range, ...]:
    """``ranges`` without the positions in ``taken``, in their order."""
    out = sorted(taken, key=lambda part: part.start)
    left: list[Range] = []
    for part in ranges:
        start = part.start
        for gone in out:
            if start < gone.stop and gone.start < part.stop:
                left.append(Range(start, gone.start))
                start = gone.stop
        left.append(Range(start, part.stop))
    return tuple(part for part in left if part.start < part.stop)


def common(ranges: Iterable[Range], others: Iterable[Range]) -> tuple[Range, ...]:
    """The positions of ``ranges`` that are in ``others`` too, in the order of ``ranges``."""
    parts = list(others)
    found = (
        Range(max(one.start, other.start), min(one.stop, other.stop))
        for one in ranges
        for other in parts
    )
    return tuple(part for part in found if part.start < part.stop)


def common_sorted(ranges: Sequence[Range], others: Sequence[Range]) -> tuple[Range, ...]:
    """``common`` of ranges that are disjoint and in order, in one walk along both."""
    found: list[Range] = []
    here = there = 0
    while here < len(ranges) and there < len(others):
        one, other = ranges[here], others[there]
        start, stop = max(one.start, other.start), min(one.stop, other.stop)
        if start < stop:
            found.append(Range(start, stop))
        if one.stop <= other.stop:
            here += 1
        else:
            there += 1
    return tuple(found)


def less_sorted(ranges: Sequence[Range], taken: Sequence[Range]) -> tuple[Range, ...]:
    """``less`` of ranges that are disjoint and in order, in one walk along both."""
    stops = [0, *(part.stop for part in taken)]
    starts = [*(part.start for part in taken), max((part.stop for part in ranges), default=0)]
    gaps = [Range(a, b) for a, b in zip(stops, starts, strict=True) if a < b]
    return common_sorted(ranges, gaps)


def count_of(ranges: Iterable[Range]) -> int:
    """How many samples they have."""
    return sum(len(part) for part in ranges)


def within(part: Range, whole: tuple[Range, ...]) -> bool:
    """Do all positions of ``part`` lie in one range of ``whole``?"""
    return any(one.start <= part.start < part.stop <= one.stop for one in whole)


def divide(batch: tuple[Range, ...], shares: int) -> list[tuple[Range, ...]]:
    """Cut a batch into ``shares`` slices whose sizes differ by at most one sample.

    The first ones are the larger: who is asked first, rank 0, has samples whenever there are any.
    """
    each, over = divmod(count_of(batch), shares)
    bounds = [each * share + min(share, over) for share in range(shares + 1)]
    return cut_at(batch, bounds)


def cut_at(batch: tuple[Range, ...], bounds: list[int]) -> list[tuple[Range, ...]]:
    """The samples of ``batch`` between each two of ``bounds``, which count from its first."""
    return [_cut(batch, start, stop) for start, stop in pairwise(bounds)]


def _cut(batch: tuple[Range, ...], start: int, stop: int) -> tuple[Range, ...]:
    """The samples number ``start`` to ``stop`` of a batch."""
    pieces: list[Range] = []
    offset = 0
    for part in batch:
        low, high = max(start, offset), min(stop, offset + len(part))
        if low < high:
            pieces.append(Range(part.start + low - offset, part.start + high - offset))
        offset += len(part)
    return tuple(pieces)
