"""Data parallelism: gradients to the shards, a round, parameters back."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from elasticps.api.strategy import Strategy, Worker
from elasticps.errors import UsageError

ASYNC = "async"


class DataParallel(Strategy):
    """Every worker's gradient counts once in each round, weighted by its samples.

    Bulk synchronous (Valiant 1990): the step is the one a single process would take on the
    union of the workers' batches. In the other consistencies a worker's step is its own.

    ``consistency`` is the job's unless it is ``async``: then a worker's gradient is applied when it
    comes, and the newest values are read, between the rounds of whatever else the job trains (Dean
    et al. 2012, Downpour SGD).
    """

    def __init__(self, consistency: str = "") -> None:
        if consistency not in ("", ASYNC):
            raise UsageError(
                f"consistency={consistency}",
                field="consistency",
                limit=f"{ASYNC}; else it is the job's",
            )
        self._at_once = consistency == ASYNC

    def applied_at_once(self, names: Sequence[str]) -> Collection[str]:
        return names if self._at_once else ()

    def step(self, worker: Worker) -> None:
        if self._at_once and worker.consistency == "sync":
            self._step_at_once(worker)
        else:
            worker.exchange()

    def _step_at_once(self, worker: Worker) -> None:
        worker.push()
        _read(worker)
        if worker.steps_left == 0 or worker.leaving:
            worker.start_exchange({}, pull=()).wait()

    def end(self, worker: Worker) -> None:
        """When the data are read, all that anybody pushed is in what is read now."""
        if self._at_once:
            _read(worker)


def _read(worker: Worker) -> None:
    """Take over the newest values."""
    worker.pull()
    with torch.no_grad():
        for name, served in worker.served.items():
            worker.parameters[name].copy_(served)
