"""Keeping a worker's learning-rate schedulers at the round of its job."""

from __future__ import annotations

import operator
from collections.abc import Sequence

from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from elasticps.errors import UsageError


class Schedule:
    """One scheduler, which takes a step ``every`` so many rounds.

    Raises UsageError for an ``every`` that is no number of rounds, and for a scheduler that needs
    more than the count of its steps.
    """

    def __init__(self, scheduler: LRScheduler, every: int) -> None:
        if isinstance(scheduler, ReduceLROnPlateau):
            raise UsageError(
                "ReduceLROnPlateau decides by losses, not by the count of its steps",
                field="scheduler",
                hint="a worker that joins later takes the job's rate by optimizer.adopt_options()",
            )
        try:
            self._every = operator.index(every)
        except TypeError:
            self._every = 0
        if self._every < 1:
            raise UsageError(f"every of {every!r}", field="every", limit="a whole number from 1")
        self._scheduler = scheduler

    def bring_to(self, rounds: int) -> None:
        """Step until it is where it is after ``rounds`` rounds; one that is ahead stays there."""
        for _ in range(rounds // self._every - steps_of(self._scheduler)):
            self._scheduler.step()


def steps_of(scheduler: LRScheduler) -> int:
    """How many steps a scheduler has taken."""
    chained: Sequence[LRScheduler] = getattr(scheduler, "_schedulers", ())
    # A ChainedScheduler has no count of its own; its parts step together.
    steps = getattr(scheduler, "last_epoch", None)
    return int(steps) if steps is not None else steps_of(chained[0])
