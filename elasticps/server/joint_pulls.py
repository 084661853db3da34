"""Pulls of one round: made together where several workers' come in one turn of the event loop.

So they come where workers have a whole round by one request: the last vote grants them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from elasticps.core.ids import JobKey
from elasticps.core.replica import Commit
from elasticps.server.block_rounds import BlockRounds
from elasticps.server.compute import ComputeThreads
from elasticps.server.group import Group
from elasticps.server.hosted import Request
from elasticps.server.parameter_block import ParameterBlock
from elasticps.server.round_step import step_each
from elasticps.wire.messages import PullMeta


@dataclass(frozen=True, slots=True, eq=False)
class Pulls:
    """The pulls of one group that can be served here, and what they prove."""

    group: Group
    reads: Sequence[tuple[ParameterBlock, Request]]
    proof: PullMeta

    def answer(self) -> None:
        for block, request in self.reads:
            block.read(request, self.proof)
        self.group.begun()


def step_for(pulls: Sequence[Pulls], threads: ComputeThreads) -> None:
    """Make the steps that the first one's proof asks for, and give their values to all."""
    asked: dict[BlockRounds, list[Request]] = {}
    for each in pulls:
        for block, request in each.reads:
            asked.setdefault(block, []).append(request)
    if pulls:
        step_each(asked, pulls[0].proof.commit, threads)


class Puller(Protocol):
    """Who pulls in the turn that is under way. Neither method raises."""

    def begin(self) -> Pulls | None:
        """What there is to pull, if that can still be."""
        ...

    def end(self, pulls: Pulls) -> None:
        """Answer it."""
        ...


class JointPulls:
    """Those of one server."""

    def __init__(self, threads: ComputeThreads) -> None:
        self._threads = threads
        self._due: dict[tuple[JobKey, Commit], list[Puller]] = {}

    def add(self, job: JobKey, commit: Commit, puller: Puller) -> None:
        """Have ``puller`` served at the end of this turn of the loop."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._serve)
        self._due.setdefault((job, commit), []).append(puller)

    def _serve(self) -> None:
        due, self._due = self._due, {}
        for pullers in due.values():
            begun = [(each, pulls) for each in pullers if (pulls := each.begin()) is not None]
            step_for([pulls for _, pulls in begun], self._threads)
            for puller, pulls in begun:
                puller.end(pulls)
