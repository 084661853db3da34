"""Which worker is in which pipeline, and its place there: numbers alone, the same in every worker.

Pipelines are of ``stages`` successive ranks each. Ranks that are left over are spare: they read
samples for a pipeline, and are there at once when a worker dies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Crew:
    """A pipeline's workers. ``ranks``: those of its stages in order, then the spare ones."""

    ranks: tuple[int, ...]
    stages: int

    @property
    def head(self) -> int:
        return self.ranks[0]

    @property
    def tail(self) -> int:
        """The rank of the last stage."""
        return self.ranks[self.stages - 1]

    def stage_of(self, rank: int) -> int | None:
        """None for a spare one."""
        place = self.ranks.index(rank)
        return place if place < self.stages else None


def crew_of(rank: int, world: int, stages: int) -> Crew:
    """The crew of ``rank`` where pipelines have ``stages`` workers; at most ``world``."""
    stages = min(stages, world)
    pipelines = world // stages
    mine = rank // stages if rank < pipelines * stages else (rank - pipelines * stages) % pipelines
    spare = range(pipelines * stages + mine, world, pipelines)
    return Crew(ranks=(*range(mine * stages, (mine + 1) * stages), *spare), stages=stages)


def hands_in_for(contributors: Sequence[int], ranks: Sequence[int]) -> dict[int, int]:
    """Who pushes the gradients of whom: a worker without samples may push none itself.

    ``ranks`` have gradients, ``contributors`` have samples, and there are some.
    """
    without = [rank for rank in ranks if rank not in contributors]
    return {rank: contributors[place % len(contributors)] for place, rank in enumerate(without)}
