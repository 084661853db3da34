"""What a job's values must show: every push counted once, and every round whole in every block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum

import torch

from elasticps.core.ids import WorkerId
from elasticps.core.replica import Commit, Settled
from elasticps.server.hosted import Hosted
from elasticps.server.parameter_block import ParameterBlock
from elasticps.wire.messages import encode

CLOSE = 1e-9


class Outcome(Enum):
    """What a worker was told of a push; UNKNOWN when it died, or gave up, before it heard."""

    UNKNOWN = "unknown"
    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"


@dataclass(slots=True)
class OneHot:
    """One push: a 1 at a place of its own, in every block."""

    worker: WorkerId
    place: int
    contributors: int = 0
    outcome: Outcome = Outcome.UNKNOWN

    def acknowledged(self, contributors: int) -> None:
        self.outcome, self.contributors = Outcome.ACKNOWLEDGED, contributors

    def refused(self) -> None:
        self.outcome = Outcome.REFUSED


@dataclass(slots=True)
class OneHotSet:
    """All pushes of a run whose servers subtract the mean of the gradients.

    With SGD at lr 1, weights of 1 and blocks that begin as zeros, a push of a round with n
    contributors leaves -1/n at its place if it was applied once: a loss cannot hide a duplicate.
    """

    places: int
    pushes: list[OneHot] = field(default_factory=list)

    def next_of(self, worker: WorkerId) -> OneHot:
        push = OneHot(worker, len(self.pushes))
        assert push.place < self.places, "the blocks have no place left"
        self.pushes.append(push)
        return push

    def gradient(self, push: OneHot) -> torch.Tensor:
        """What ``push`` gives to each of the blocks."""
        gradient = torch.zeros(self.places, dtype=torch.float64)
        gradient[push.place] = 1.0
        return gradient

    def faults(
        self, blocks: Sequence[torch.Tensor], most_contributors: int, *, in_rounds: bool = True
    ) -> list[str]:
        """What is wrong with the blocks' values at the end, in words; empty when all is right.

        Where there are no rounds, a worker that dies may have reached some of the blocks alone.
        """
        faults = []
        for push in self.pushes:
            shares = [-float(block[push.place]) for block in blocks]
            differ = max(shares) - min(shares) > CLOSE
            if differ and (in_rounds or push.outcome is not Outcome.UNKNOWN):
                faults.append(f"{push} differs between blocks: {shares}")
            allowed = list(_allowed(push, most_contributors))
            wrong = [s for s in shares if not any(abs(s - one) < CLOSE for one in allowed)]
            if wrong:
                faults.append(f"{push} left {wrong}")
        unused = (bool(block[len(self.pushes) :].any()) for block in blocks)
        faults += [f"block {n} holds what nobody pushed" for n, bad in enumerate(unused) if bad]
        return faults


def _allowed(push: OneHot, most_contributors: int) -> Iterable[float]:
    match push.outcome:
        case Outcome.ACKNOWLEDGED:
            return [1.0 / push.contributors]
        case Outcome.REFUSED:
            return [0.0]
        case Outcome.UNKNOWN:
            return [0.0, *(1.0 / count for count in range(1, most_contributors + 1))]


def bits_of_round(
    before: Sequence[torch.Tensor], after: Sequence[torch.Tensor], contributors: int
) -> set[int]:
    """The workers that a round counted, where worker w's gradient is the constant 2**w.

    One number, its bits the workers, when the round is whole; else one for each kind of element.
    """
    found: set[int] = set()
    for one, other in zip(before, after, strict=True):
        sums = ((one - other) * contributors).reshape(-1)
        found.update(round(item) for item in sums.tolist())
    return found


def brought_up(replica: Hosted, commit: Commit | None) -> Hosted:
    """The replica, which has applied the round that ``commit`` proves, as a reader's proof has it.

    A backup holds the newest round prepared until it hears that it was committed.
    """
    if isinstance(replica, ParameterBlock):
        settled = replica._replica.settle(commit)
        assert settled in (Settled.DONE, Settled.APPLY), settled
        if settled is Settled.APPLY:
            replica.step(*replica.take_prepared(commit.scale if commit else 1.0))
    return replica


def digest(replica: Hosted) -> str:
    """A replica's version, history and whole state, as its snapshot would carry them."""
    meta, payload = replica.snapshot()
    return hashlib.sha256(encode(meta) + payload).hexdigest()
