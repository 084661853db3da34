"""The contract of a communication strategy (entry-point group ``elasticps.strategies``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Protocol


class Step(Protocol):
    """One step of one worker as a strategy sees it. All calls run on the worker's data loop."""

    async def push(self) -> None:
        """Stage this worker's gradient of every block at the block's primary.

        When the set of workers has changed meanwhile, it is the vote that says so.
        """

    async def vote(self) -> Any:
        """Tell the ledger that all is staged; returns its commit once the round is whole.

        Returns None when the set of workers changed first: push and vote again.
        """

    async def pull(self, commit: Any) -> None:
        """Read every block as of ``commit`` into the model's parameters."""


class Strategy(ABC):
    """How workers exchange what they have learned. Made anew in each worker."""

    api_version: ClassVar[int] = 1

    @abstractmethod
    async def step(self, step: Step) -> None:
        """Carry out one optimizer step; on return the parameters are the next round's."""
