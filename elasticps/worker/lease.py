"""What a worker still has to read, or to step, of what it was lent for a round."""

from __future__ import annotations

import math
from collections import deque

from elasticps.core.commands import Turn
from elasticps.core.ranges import Range, count_of, cut_at

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
        self._kept: Samples = ()
        self._steps_kept = 0
        self._foreseen: list[Samples] = []
        self._by_speed = False

    @property
    def ahead(self) -> list[Samples]:
        """The batches to come: those lent, and those that will be if all goes on as it is."""
        return [*self._batches, *self._foreseen]

    @property
    def steps_left(self) -> int:
        return len(self._batches) if self._batch_size else self._steps

    def hand_in(self) -> Samples:
        """A round begins: what is left unread is returned, to be kept for the next."""
        self._kept = tuple(part for batch in self._batches for part in batch)
        self._steps_kept = self._steps
        return self._kept

    def read_data(self, batch_size: int, *, by_speed: bool) -> None:
        """From now on samples are read, in global batches of ``batch_size``.

        ``by_speed``: a turn's samples are this worker's share of all the round's steps, whatever
        their number; else it takes fewer steps where there are fewer samples.
        """
        self._batch_size, self._by_speed = batch_size, by_speed

    def add(self, turn: Turn) -> None:
        """A new turn has begun, first of all with what was kept.

        The rest is cut into this worker's shares of global batches, the last one what is left.
        """
        kept = count_of(self._kept)
        self._kept, steps_kept, self._steps_kept = (), self._steps_kept, 0
        if self._batch_size is None:
            self._steps += max(0, self._span - steps_kept)
            return
        self._batches.extend(self._cut(turn.samples, turn.world, kept))
        self._foreseen = [
            batch for samples in turn.ahead for batch in self._cut(samples, turn.world, 0)
        ]

    def _cut(self, samples: Samples, world: int, kept: int) -> list[Samples]:
        assert self._batch_size is not None
        count = count_of(samples)
        each = max(1.0, self._batch_size / world)
        if self._by_speed:
            each = max(1.0, (count - kept) / self._span)
        steps = min(self._span, math.ceil((count - kept) / each))
        bounds = [kept + int(step * each) for step in range(steps)]
        return cut_at(samples, [*bounds, count])

    def take(self) -> Samples | None:
        """The next step's batch; None when the turn has no more."""
        return self._batches.popleft() if self._batches else None

    def stepped(self) -> None:
        """A step has been taken; where data are read ``take`` counts it."""
        self._steps = max(0, self._steps - 1)

    def clear(self) -> None:
        """Nothing of what was lent is to be read any more."""
        self._batches.clear()
        self._foreseen = []
        self._steps = self._steps_kept = 0
        self._kept = ()
