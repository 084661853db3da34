"""Synchronous data parallelism: gradients to the shards, a whole round, parameters back."""

from __future__ import annotations

from elasticps.api.strategy import Step, Strategy


class DataParallel(Strategy):
    """Every worker's gradient counts once in each round, weighted by its samples.

    Bulk synchronous (Valiant 1990): the step is the one a single process would take on the
    union of the workers' batches.
    """

    async def step(self, step: Step) -> None:
        commit = None
        while commit is None:
            await step.push()
            commit = await step.vote()
        await step.pull(commit)
