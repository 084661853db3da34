"""What ``auto`` may choose, in the order of how near it is to synchronous training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from elasticps.core.chosen import DEFAULT_CODEC

if TYPE_CHECKING:
    from elasticps.core.cost import Prediction

SLACK = 0.1
"""What is nearer to synchronous training is preferred while it costs at most so much more time."""


class Kind(Enum):
    """What goes around in an exchange."""

    GRADIENTS = "gradients to the shards, parameters back"
    SUM = "gradients among the workers"
    PROGRESS = "the workers' progress to the shards, parameters back"
    CENTRE = "a part of the distance to the centre, and the centre back"
    NEIGHBOURS = "parameters among neighbours"


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A strategy and a codec, as a user writes them; an exchange comes every ``h`` steps.

    ``differs`` says in what from the step of one process on the whole batch; empty: in nothing.
    ``rounded`` and ``sent in part`` are the gradients, ``steps apart`` and ``own models`` the
    workers.
    """

    strategy: str
    kind: Kind
    codec: str = DEFAULT_CODEC
    h: int = 1
    differs: str = ""

    @property
    def exact(self) -> bool:
        return not self.differs


def _coded(codec: str, differs: str) -> Candidate:
    return Candidate(strategy="data-parallel", kind=Kind.GRADIENTS, codec=codec, differs=differs)


def _local(h: int) -> Candidate:
    return Candidate(
        strategy=f"local-sgd:h={h}", kind=Kind.PROGRESS, h=h, differs=f"{h} steps apart"
    )


CANDIDATES = (
    Candidate(strategy="data-parallel", kind=Kind.GRADIENTS),
    Candidate(strategy="all-reduce", kind=Kind.SUM),
    _coded("bf16", "rounded"),
    _coded("int8", "rounded"),
    _coded("ef+top-k", "sent in part"),
    _local(4),
    _local(16),
    Candidate(strategy="elastic-averaging", kind=Kind.CENTRE, h=4, differs="own models"),
    Candidate(strategy="gossip", kind=Kind.NEIGHBOURS, differs="own models"),
    _local(64),
)
"""The nearest to synchronous training first. The exact ones are equal in that, to rounding."""

CODECS = tuple(dict.fromkeys(each.codec for each in CANDIDATES if each.codec != DEFAULT_CODEC))


def choose(
    predictions: Sequence[Prediction], *, approximate: bool, checkpoints: bool = False
) -> Prediction:
    """The fastest of those that are allowed, or one nearer to synchronous that is hardly slower.

    Only exact ones are allowed unless ``approximate``; with ``checkpoints`` only those whose shards
    have each round, for a checkpoint is what the shards have.
    """

    def is_allowed(candidate: Candidate) -> bool:
        is_served = candidate.kind not in (Kind.SUM, Kind.NEIGHBOURS)
        return (approximate or candidate.exact) and (is_served or not checkpoints)

    allowed = [each for each in predictions if is_allowed(each.candidate)]
    limit = (1 + SLACK) * min(each.step_s for each in allowed)
    near = [each for each in allowed if each.step_s <= limit]
    return min(near, key=lambda each: CANDIDATES.index(each.candidate))
