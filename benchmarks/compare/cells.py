"""What is compared, and what must hold for each: one row a strategy."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

EXACT = 1e-5
CLOSE_ACCURACY = 0.01
CLOSE_LOSS = 1.05
STALL_S = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One cell, measured: a strategy on a task, left alone or with a death and a join.

    ``difference`` is the largest of any parameter from the local run's.
    """

    strategy: str
    task: str
    disturbed: bool
    steps_per_s: float
    bytes_a_step: float
    loss: float
    accuracy: float
    local_loss: float
    local_accuracy: float
    difference: float
    longest_pause_s: float

    @property
    def has_learned(self) -> bool:
        """Accuracy within a point of the local run's, or a loss that is as close."""
        near = self.accuracy >= self.local_accuracy - CLOSE_ACCURACY
        return near or self.loss <= CLOSE_LOSS * self.local_loss


Check = Callable[[Outcome], str]
"""What is not as it should be, in words; empty where it is."""


def learns(outcome: Outcome) -> str:
    if outcome.has_learned:
        return ""
    return f"accuracy {outcome.accuracy:.3f}, the local run's {outcome.local_accuracy:.3f}"


def equals_local(outcome: Outcome) -> str:
    if outcome.disturbed or outcome.difference <= EXACT:
        return ""
    return f"a parameter differs by {outcome.difference:.1e} from the local run's"


def goes_on(outcome: Outcome) -> str:
    if not outcome.disturbed or outcome.longest_pause_s <= STALL_S:
        return ""
    return f"a step took {outcome.longest_pause_s:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """``job`` is what the job is submitted with, ``arguments`` what its script is started with."""

    name: str
    job: dict[str, Any]
    arguments: tuple[str, ...] = ()
    checks: tuple[Check, ...] = field(default=(learns,))


ROWS = [
    Row(name="data-parallel", job={}, checks=(learns, equals_local)),
    Row(
        name="data-parallel, bounded by 2",
        job={"consistency": "bounded", "staleness": 2},
    ),
    Row(name="data-parallel, async", job={"consistency": "async"}),
    Row(name="local-sgd, h=8", job={"strategy": "local-sgd:h=8"}),
    Row(
        name="local-sgd, h=8, Nesterov outside (DiLoCo)",
        job={"strategy": "local-sgd:h=8,outer=nesterov,outer_lr=0.7,outer_momentum=0.5"},
    ),
    Row(
        name="elastic-averaging, h=4",
        job={"strategy": "elastic-averaging:h=4", "consistency": "async"},
    ),
    Row(name="gossip, ring", job={"strategy": "gossip:topology=ring"}),
    Row(
        name="all-reduce",
        job={"strategy": "all-reduce"},
        checks=(learns, equals_local, goes_on),
    ),
    Row(
        name="model-parallel, 3 stages",
        job={"strategy": "model-parallel"},
        arguments=("--pipeline",),
        checks=(learns, equals_local),
    ),
    Row(
        name="by name: all-reduce for biases, else data-parallel",
        job={"strategy": "*.bias=all-reduce; *=data-parallel"},
        checks=(learns, equals_local),
    ),
]


def violations(row: Row, outcome: Outcome) -> list[str]:
    return [text for check in row.checks if (text := check(outcome))]
