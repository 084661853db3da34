"""The contract of a placement (entry-point group ``elasticps.placements``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from elasticps.core.placement import Site
from elasticps.core.proposal import Load, PlacedBlock, Proposal, Situation

__all__ = ["Load", "PlacedBlock", "Placement", "Proposal", "Site", "Situation"]


class Placement(ABC):
    """Says which servers should hold which blocks of a job that is running.

    The leader makes one for each question, in a process of its own that is ended after some
    seconds, so it remembers nothing between two questions. It is asked when servers come or go and
    every few seconds, and in a cluster where nothing changes it must come to rest. A proposal that
    is not sound, an exception or no answer in time is told in the job's status, and the blocks are
    placed as by ``balanced`` until it answers well.
    """

    api_version: ClassVar[int] = 1

    @abstractmethod
    def propose(self, situation: Situation) -> Proposal:
        """For each block that should be elsewhere its servers, the primary first.

        As many as the job has replicas (or as there are nodes, where those are fewer), no two on
        one node, nor in one zone where there are zones enough. Blocks left out stay where they are.
        """
