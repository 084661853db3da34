"""The built-in data policies as plugins."""

from __future__ import annotations

from elasticps.api.data_policy import DataPolicy, Lending, Loans
from elasticps.core import lending


class Dynamic(DataPolicy):
    """Lends the next unread samples, a round at a time, in near-equal slices. The default."""

    def lend(self, asked: Lending) -> Loans:
        return lending.Dynamic().lend(asked)


class Leased(DataPolicy):
    """Lends the next unread samples, to each worker as many as its measured speed calls for."""

    def lend(self, asked: Lending) -> Loans:
        return lending.Leased().lend(asked)


class Local(DataPolicy):
    """As leased, but gives a worker what lies on its own node before anything else."""

    def lend(self, asked: Lending) -> Loans:
        return lending.Local().lend(asked)


class Static(DataPolicy):
    """Gives each worker a stripe of each data epoch, which it reads while the workers stay."""

    def lend(self, asked: Lending) -> Loans:
        return lending.Static().lend(asked)
