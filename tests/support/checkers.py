"""What a job's values must show: every push counted once, and every round whole in every block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from elasticps.core.ids import Seq, WorkerId
from elasticps.server.hosted import Hosted
from elasticps.wire.messages import encode


class Outcome(Enum):
    """What a worker was told of a push; UNKNOWN when it died, or gave up, before it heard."""

    UNKNOWN = "unknown"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass(slots=True)
class _Push:
    worker: WorkerId
    seq: Seq
    place: int
    contributors: int = 0
    outcome: Outcome = Outcome.UNKNOWN


@dataclass(slots=True)
class OneHotSet:
    """Every push is a 1 at a place of its own, in every block; the servers subtract the mean.

    With SGD at lr 1, weights of 1 and blocks that begin as zeros, a push of a round with n
    contributors leaves -1/n at its place if it was applied once: a loss cannot hide a duplicate.
    """

    places: int
    pushes: list[_Push] = field(default_factory=list)

    def gradient(self, worker: WorkerId, seq: Seq, dtype: torch.dtype) -> torch.Tensor:
        """The next push of ``worker``: to be given to each of the blocks."""
        place = len(self.pushes)
        assert place < self.places, "the blocks have no place left"
        self.pushes.append(_Push(worker, seq, place))
        gradient = torch.zeros(self.places, dtype=dtype)
        gradient[place] = 1.0
        return gradient

    def acknowledged(self, worker: WorkerId, seq: Seq, contributors: int) -> None:
        push = self._find(worker, seq)
        push.outcome, push.contributors = Outcome.ACKNOWLEDGED, contributors

    def refused(self, worker: WorkerId, seq: Seq) -> None:
        self._find(worker, seq).outcome = Outcome.REFUSED

    def _find(self, worker: WorkerId, seq: Seq) -> _Push:
        return next(push for push in self.pushes if (push.worker, push.seq) == (worker, seq))

    def faults(self, blocks: Sequence[torch.Tensor], worlds: Iterable[int]) -> list[str]:
        """What is wrong with the blocks' values; ``worlds`` are the numbers of contributors seen.

        They are all that the share of a push whose fate nobody heard can be a fraction of.
        """
        fractions = sorted(set(worlds))
        faults = []
        for push in self.pushes:
            shares = [-float(block[push.place]) for block in blocks]
            if max(shares) - min(shares) > 1e-9:
                faults.append(f"{push} is not whole: {shares}")
            elif not self._is_right(push, shares[0], fractions):
                faults.append(f"{push} left {shares[0]}")
        used = len(self.pushes)
        faults += [f"a place of no push is not 0 in {n}" for n, b in _numbered(blocks, used)]
        return faults

    def _is_right(self, push: _Push, share: float, fractions: Sequence[int]) -> bool:
        allowed = [0.0]
        if push.outcome is Outcome.ACKNOWLEDGED:
            allowed = [1.0 / push.contributors]
        elif push.outcome is Outcome.UNKNOWN:
            allowed = [0.0, *(1.0 / fraction for fraction in fractions)]
        return any(abs(share - one) < 1e-9 for one in allowed)


def _numbered(blocks: Sequence[torch.Tensor], used: int) -> Iterable[tuple[int, torch.Tensor]]:
    return ((n, block) for n, block in enumerate(blocks) if bool(block[used:].any()))


def bits_of_round(
    before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], contributors: int
) -> set[int]:
    """The workers that a round counted, where worker w's gradient is the constant 2**w.

    One number, its bits the workers, when the round is whole; else one for each kind of element.
    """
    found: set[int] = set()
    for one, other in zip(before, after, strict=True):
        sums = ((one - other) * contributors).reshape(-1).unique()
        found.update(round(float(item)) for item in sums)
    return found


def digest(replica: Hosted) -> str:
    """A replica's version, history and whole state, as its snapshot would carry them."""
    meta, payload = replica.snapshot()
    return hashlib.sha256(encode(meta) + payload).hexdigest()
