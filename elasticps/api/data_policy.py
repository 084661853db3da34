"""The contract of a data policy (entry-point group ``elasticps.data_policies``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from elasticps.core.lending import Lending, Loans
from elasticps.core.ranges import Range

__all__ = ["DataPolicy", "Lending", "Loans", "Range"]


class DataPolicy(ABC):
    """Shares the samples of ``run.data`` out to the workers.

    It is asked inside the job's ledger, by every replica of it for itself, on a shard server's
    loop: ``lend`` must be quick, and a pure function of its argument. No clock, no randomness, no
    state of its own: what it wants to remember it puts into ``Loans.owned``. An answer that is not
    sound, or an exception, ends the job with this policy's name; no sample is lost or read twice
    by it.
    """

    api_version: ClassVar[int] = 1

    @abstractmethod
    def lend(self, asked: Lending) -> Loans:
        """Who gets which of the unread samples. Where nobody holds any, somebody must get some."""
