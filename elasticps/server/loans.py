"""Memory of a primary that its peers of this machine map: a gradient that lies there is not sent.

A loan is written to again once every peer has applied what was in it, or holds something later. One
that a peer may read yet, though its stream has broken, is let go of and never written to again: its
pages stay for as long as that peer maps them.
"""

from __future__ import annotations

import logging
import secrets

import torch

from elasticps.wire.connection import Connection
from elasticps.wire.regions import Region

log = logging.getLogger(__name__)

MOST_LOANS = 2
"""Of one block: a peer that applies late has one while the other is written to."""


class Loan:
    """Memory for one block's gradient. ``number`` names it to peers.

    ``shown_to``: the connections over which it was; ``to_show``: over how many it is yet to be.
    ``held_by``: the streams whose peers may read it yet.
    """

    def __init__(self, nbytes: int, to_show: int) -> None:
        self.number = secrets.randbits(62) | 1
        self.region = Region.make("elasticps-replicas", nbytes, others_write=False)
        self.shown_to: set[Connection] = set()
        self.to_show = to_show
        self.held_by: set[object] = set()
        self.is_over = self.is_refused = False

    @property
    def tensor(self) -> torch.Tensor:
        """All of it, as bytes."""
        return self.region.mapping.tensor

    def shown(self, connection: Connection | None) -> None:
        """A peer has mapped it, or (None) will not."""
        self.to_show -= 1
        if connection is not None:
            self.shown_to.add(connection)
        if not self.to_show:
            self.region.close()

    def end(self) -> None:
        """Do not write to it any more, nor show it to anybody. Idempotent."""
        self.is_over = True
        self.region.close()


class BlockLoans:
    """Those of one block, each of ``nbytes``."""

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._loans: list[Loan] = []
        self._is_possible = True

    def free(self, near: set[Connection]) -> Loan | None:
        """One that may be written to, and that was shown to all peers that are ``near``."""
        for loan in self._loans:
            if not loan.held_by and not loan.is_over and near <= loan.shown_to:
                return loan
        return None

    def more(self, near: set[Connection]) -> Loan | None:
        """Another one, to be shown to those; None where there are enough, or can be none."""
        for loan in self._loans:
            if not (loan.held_by or loan.to_show or near <= loan.shown_to):
                loan.end()  # a peer has come since
            if loan.is_refused:
                self._is_possible = False
        self._loans = [loan for loan in self._loans if not loan.is_over]
        if not self._is_possible or len(self._loans) >= MOST_LOANS:
            return None
        try:
            loan = Loan(self.nbytes, len(near))
        except OSError as error:
            log.warning("gradients are sent: no memory to lend: %s", error)
            self._is_possible = False
            return None
        self._loans.append(loan)
        return loan

    def end(self) -> None:
        for loan in self._loans:
            loan.end()
        self._loans.clear()
