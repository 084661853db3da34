"""Data leases as arithmetic: which samples a round reads, and how its workers share them.

A sample's position counts over all passes: position ``p`` is the sample at ``p % size`` in the
order of data epoch ``p // size``.
"""

from __future__ import annotations

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

    def spent(self, data: DataSpec) -> bool:
        """True when every sample of every data epoch is lent and none was given back."""
        return not self.given_back and self.position >= data.size * data.epochs


def take(data: DataSpec, supply: Supply) -> tuple[tuple[Range, ...], Supply]:
    """One global batch: what was given back first, then fresh positions up to the epoch's end.

    Empty when every sample of every epoch has been lent.
    """
    batch: list[Range] = []
    wanted = data.batch_size
    given_back = list(supply.given_back)
    while given_back and wanted:
        first = given_back.pop(0)
        part = Range(first.start, min(first.stop, first.start + wanted))
        if part.stop < first.stop:
            given_back.insert(0, Range(part.stop, first.stop))
        batch.append(part)
        wanted -= len(part)
    end_of_epoch = min((supply.position // data.size + 1) * data.size, data.size * data.epochs)
    stop = max(supply.position, min(supply.position + wanted, end_of_epoch))
    if stop > supply.position:
        batch.append(Range(supply.position, stop))
    return tuple(batch), Supply(stop, tuple(given_back))


def count_of(ranges: tuple[Range, ...]) -> int:
    """How many samples they have."""
    return sum(len(part) for part in ranges)


def within(part: Range, whole: tuple[Range, ...]) -> bool:
    """Do all positions of ``part`` lie in one range of ``whole``?"""
    return any(one.start <= part.start < part.stop <= one.stop for one in whole)


def divide(batch: tuple[Range, ...], shares: int) -> list[tuple[Range, ...]]:
    """Cut a batch into ``shares`` slices whose sizes differ by at most one sample.

    The first ones are the larger: who is asked first, rank 0, has samples whenever there are any.
    """
    each, over = divmod(sum(len(part) for part in batch), shares)
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
