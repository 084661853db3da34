"""Data parallelism: gradients to the shards, a round, parameters back."""

from __future__ import annotations

from elasticps.api.strategy import Strategy, Worker


class DataParallel(Strategy):
    """Every worker's gradient counts once in each round, weighted by its samples.

    Bulk synchronous (Valiant 1990): the step is the one a single process would take on the
    union of the workers' batches. In the other consistencies a worker's step is its own.
    """

    def step(self, worker: Worker) -> None:
        worker.exchange()
