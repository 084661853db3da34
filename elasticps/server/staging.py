"""Gradients that wait at a block's primary: their senders, their mean, and the prepared round."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import msgspec
import torch

from elasticps.core.blocks import Hyperparameters
from elasticps.core.ids import Seq, WorkerId
from elasticps.server.gradient_mean import EXACT, Mean
from elasticps.server.hosted import Request
from elasticps.server.loans import Loan
from elasticps.wire.frame import Status
from elasticps.wire.tallies import JobCounts


class Staged(msgspec.Struct, frozen=True, gc=False):
    """One worker's gradient; None where the step gave the parameter none.

    One that is ``lent`` is in the worker's memory and must not be written to; the worker keeps it
    as it is until its push is answered, and where it is ``kept`` until it has pulled the result.
    """

    gradient: torch.Tensor | None
    weight: float
    hyper: Hyperparameters
    rank: int = 0
    lent: bool = False
    kept: bool = False


class PreparedGradient(msgspec.Struct, frozen=True, dict=True):
    """A round's mean gradient, held until the round is known to be committed.

    One that is ``lent`` must not be written to: it is in its workers' memory, see ``Staged``, or in
    what servers of this machine share of it: for the primary its ``loan``. One of several workers
    may be not summed yet.
    """

    given: torch.Tensor | Mean | None
    hyper: Hyperparameters
    lent: bool = False
    kept: bool = False
    loan: Loan | None = None

    def lying_in(self, loan: Loan) -> PreparedGradient:
        """The same, in memory that peers can read."""
        if self.gradient is None:
            return self
        target = loan.tensor.view(self.gradient.dtype).view(self.gradient.shape)
        if target.data_ptr() != self.gradient.data_ptr():
            target.copy_(self.gradient)
        return PreparedGradient(target, self.hyper, lent=True, loan=loan)

    @property
    def gradient(self) -> torch.Tensor | None:
        return self.given.whole if isinstance(self.given, Mean) else self.given

    @property
    def tensors(self) -> Sequence[torch.Tensor]:
        """All that the gradient is made of, as it lies."""
        if isinstance(self.given, Mean):
            return [gradient for gradient, _ in self.given.parts]
        return [] if self.given is None else [self.given]

    def owned(self) -> PreparedGradient:
        """The same, in this server's memory."""
        return self.copied() if self.lent else self

    def copied(self) -> PreparedGradient:
        if isinstance(self.given, Mean):
            return PreparedGradient(self.given.whole, self.hyper)
        return PreparedGradient(None if self.given is None else self.given.clone(), self.hyper)

    @cached_property
    def norm(self) -> float:
        """The gradient's Euclidean norm, in double precision."""
        if self.gradient is None:
            return 0.0
        return float(torch.linalg.vector_norm(self.gradient, dtype=torch.float64))


@dataclass(slots=True)
class Staging:
    """What one block's primary holds of a round under way, by worker; drops are counted."""

    counts: JobCounts = field(default_factory=JobCounts, compare=False)
    gradients: dict[WorkerId, Staged] = field(default_factory=dict)
    held: dict[WorkerId, Request] = field(default_factory=dict)

    def hold(self, worker: WorkerId, request: Request) -> None:
        """Answer ``request`` later; an earlier copy is asked again by whoever waits for it yet."""
        earlier = self.held.pop(worker, None)
        if earlier is not None:
            earlier.answer(Status.FENCED)
        self.held[worker] = request

    def take(self, worker: WorkerId, staged: Staged) -> None:
        """Keep a gradient; an earlier one of this worker was for a round that begins anew."""
        self.counts.discarded += worker in self.gradients
        self.gradients[worker] = staged

    def keep_only(self, workers: Mapping[WorkerId, Seq]) -> None:
        """Drop what belongs to no push that the replica remembers as staged."""
        for worker in self.gradients.keys() - workers.keys():
            del self.gradients[worker]
            self.counts.discarded += 1
        for worker in self.held.keys() - workers.keys():
            self.held.pop(worker).answer(Status.STALE_GENERATION)

    def refuse(self, status: Status) -> None:
        """Let go of everything and answer whoever waits."""
        for request in self.held.values():
            request.answer(status)
        self.counts.discarded += len(self.gradients)
        self.held.clear()
        self.gradients.clear()

    def taken(
        self, room: torch.Tensor | None = None, *, apart: bool = False
    ) -> tuple[PreparedGradient, list[Request]]:
        """The mean of all that is staged, and whom it has to be answered to; nothing stays.

        The options are those of the lowest rank: of who has been there longest. ``room``: bytes
        that the mean may lie in, where it is no worker's gradient as it is. ``apart``: what its
        workers keep need not be summed yet.
        """
        # By rank: a resumed job's workers have other ids, in any order, and are to sum the same.
        by_rank = sorted(self.gradients.items(), key=lambda entry: (entry[1].rank, entry[0]))
        staged = [gradient for _, gradient in by_rank]
        given = mean(staged, room, apart=apart)
        source = next((item for item in staged if item.gradient is given), None)
        is_apart = isinstance(given, Mean)
        prepared = PreparedGradient(
            given,
            staged[0].hyper,
            lent=is_apart or (source is not None and source.lent),
            kept=is_apart or (source is not None and source.kept),
        )
        waiting = list(self.held.values())
        self.gradients, self.held = {}, {}
        return prepared, waiting


def mean(
    staged: Sequence[Staged], room: torch.Tensor | None = None, *, apart: bool = False
) -> torch.Tensor | Mean | None:
    """The workers' mean gradient by samples, summed in the order given: in ``room`` (as many bytes,
    if it is of use), or in the first one's memory, where that is not lent.

    ``apart``: not summed yet, where all of it stays as it is until the result has been pulled.
    """
    total = sum(item.weight for item in staged)
    given = [item for item in staged if item.gradient is not None]
    parts = [(item.gradient, item.weight) for item in given if item.gradient is not None]
    if len({item.weight for item in staged}) == 1:  # nothing is to be multiplied then
        parts, total = [(gradient, 1.0) for gradient, _ in parts], float(len(staged))
    if not parts:
        return None
    first, weight = parts[0]
    if weight == total:
        return first
    result = Mean(parts, total)
    if apart and first.dtype in EXACT and all(item.lent and item.kept for item in given):
        return result
    if room is not None and first.dtype in EXACT and room.nbytes == first.nbytes:
        return result.piece(..., room.view(first.dtype).view(first.shape))
    return result.whole if given[0].lent else result.summed_into(first)
