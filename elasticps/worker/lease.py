"""What a worker still has to read, or to step, of what it was lent for a round."""

from __future__ import annotations

from collections import deque

from elasticps.core.commands import Turn
from elasticps.core.ranges import Range, divide

Samples = tuple[Range, ...]


class Lease:
    """A turn's samples as the batches of its steps; a number of steps where no data are read.

    ``steps_per_round`` is the strategy's. The ledger lends a round's samples at once, so that one
    vote commits them all, and returns them all where the worker dies before.
    """

    def __init__(self, steps_per_round: int) -> None:
        self._span = steps_per_round
        self._batch_size: int | None = None
        self._batches: deque[Samples] = deque()
        self._steps = 0

    @property
    def steps_left(self) -> int:
        return len(self._batches) if self._batch_size else self._steps

    @property
    def unread(self) -> Samples:
        """The samples of the batches that nobody has taken."""
        return tuple(part for batch in self._batches for part in batch)

    def read_data(self, batch_size: int) -> None:
        """From now on samples are read, in global batches of ``batch_size``."""
        self._batch_size = batch_size

    def add(self, turn: Turn, kept: int = 0) -> None:
        """A new turn has begun; its first ``kept`` samples are of the turn before."""
        if self._batch_size is None:
            self._steps += self._span
            return
        fresh = _after(turn.samples, kept)
        count = sum(len(part) for part in fresh)
        if count:
            steps = round(count * turn.world / self._batch_size)
            self._batches.extend(divide(fresh, max(1, min(steps, self._span, count))))

    def take(self) -> Samples | None:
        """The next step's batch; None when the turn has no more."""
        return self._batches.popleft() if self._batches else None

    def stepped(self) -> None:
        """A step has been taken; where data are read ``take`` counts it."""
        self._steps = max(0, self._steps - 1)

    def clear(self) -> None:
        """Nothing of what was lent is to be read any more."""
        self._batches.clear()
        self._steps = 0


def _after(samples: Samples, skipped: int) -> Samples:
    """``samples`` without the first ``skipped``."""
    rest: list[Range] = []
    for part in samples:
        start = min(part.start + skipped, part.stop)
        skipped -= start - part.start
        if start < part.stop:
            rest.append(Range(start, part.stop))
    return tuple(rest)
