"""Local SGD: many steps here, then one round in which the workers' progress is what is pushed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from elasticps.api.strategy import Pending, ServedOptimizer, Strategy, Worker
from elasticps.errors import UsageError

if TYPE_CHECKING:
    from elasticps.api.strategy import Tensors

DILOCO_LR = 0.7
DILOCO_MOMENTUM = 0.9
MIXED_AFTER_OVERLAP = 0.5


class LocalSGD(Strategy):
    """``h`` steps of the script's optimizer in each worker, then one of the outer on the shards.

    What is pushed is how far a worker has come, served - local; the mean of it by samples is the
    outer optimizer's gradient. ``outer``:

    - ``average``: SGD with rate 1, the workers' mean (McMahan et al. 2017, FedAvg, algorithm 1;
      Stich 2018, "Local SGD Converges Fast and Communicates Little", algorithm 1);
    - ``sgd``: SGD with ``outer_lr`` (1) and ``outer_momentum`` (0);
    - ``nesterov``: the same with Nesterov's momentum, 0.7 and 0.9 unless told otherwise (Douillard
      et al. 2023, "DiLoCo", algorithm 1 and section 3).

    Where rounds do not wait for all, each push acts by itself, divided by the number of workers.

    With ``fragments`` the model goes in that many parts, one every h / fragments steps, so that
    each goes every ``h``; with ``overlap`` a part's exchange goes on while that many further steps
    are computed, and what comes back is mixed with what is here by then: ``mix`` of the local value
    (0.5) and the rest of the served one (Douillard et al. 2025, "Streaming DiLoCo", algorithm 2).
    """

    def __init__(
        self,
        h: int = 16,
        outer: str = "average",
        outer_lr: float | None = None,
        outer_momentum: float | None = None,
        fragments: int = 1,
        overlap: int = 0,
        mix: float = MIXED_AFTER_OVERLAP,
    ) -> None:
        self._outer = _outer(outer, outer_lr, outer_momentum)
        if min(h, fragments) < 1 or h % fragments:
            raise ValueError(f"h={h}, fragments={fragments}: h is a multiple of fragments, from 1")
        if not 0 <= overlap < h // fragments:
            raise ValueError(f"overlap={overlap}: fewer than the {h // fragments} steps of a round")
        if not 0 <= mix < 1:
            raise ValueError(f"mix={mix}: at least 0, below 1")
        self._span = h // fragments
        self._count = fragments
        self._overlap = overlap
        self._mix = mix
        self._fragments: Sequence[Sequence[str]] = ()
        self._under_way: _UnderWay | None = None

    @property
    def steps_per_round(self) -> int:
        return self._span + self._overlap

    def served_optimizer(self, chosen: ServedOptimizer) -> ServedOptimizer:
        return self._outer

    def begin(self, worker: Worker) -> None:
        if worker.backup_workers and (self._count > 1 or self._overlap):
            raise UsageError(
                "who was too slow for a round would have to undo a part of its steps",
                field="strategy",
                limit="no fragments and no overlap with backup workers",
            )
        self._fragments = fragments_of(worker.served, self._count)

    def step(self, worker: Worker) -> None:
        worker.local_optimizer.step()
        if self._under_way is not None:
            self._under_way.age += 1
            if self._under_way.age >= self._overlap or worker.steps_left == 0:
                self._merge(worker, self._mix)
        if self._under_way is None and (worker.steps_left <= self._overlap or worker.leaving):
            self._send(worker)
            if self._overlap == 0 or worker.steps_left == 0 or worker.leaving:
                self._merge(worker, 0.0)

    def _send(self, worker: Worker) -> None:
        """Push how far this worker has come in the round's fragment; at the end, in all."""
        ends = worker.leaving or (worker.ends_data and worker.steps_left == 0)
        names = list(worker.served) if ends else self._fragments[worker.round % self._count]
        served, here = worker.served, worker.parameters
        # A round's pushes act as their mean; alone, each acts as its part of one.
        share = 1.0 if worker.consistency == "sync" else 1.0 / worker.world
        progress = {name: (served[name] - here[name].detach()).mul_(share) for name in names}
        self._under_way = _UnderWay(worker.start_exchange(progress), names)

    def _merge(self, worker: Worker, mix: float) -> None:
        """Take over what the shards made of it; ``mix`` of the local value stays."""
        under_way, self._under_way = self._under_way, None
        assert under_way is not None
        under_way.ticket.wait()
        with torch.no_grad():
            for name in under_way.names:
                worker.parameters[name].lerp_(worker.served[name], 1.0 - mix)

    def end(self, worker: Worker) -> None:
        self._under_way = None
        with torch.no_grad():
            for name, served in worker.served.items():
                worker.parameters[name].copy_(served)


class _UnderWay:
    """A fragment's exchange, and how many steps have been taken since it began."""

    def __init__(self, ticket: Pending, names: Sequence[str]) -> None:
        self.ticket = ticket
        self.names = names
        self.age = 0


def _outer(outer: str, lr: float | None, momentum: float | None) -> ServedOptimizer:
    defaults: Mapping[str, tuple[float, float]] = {
        "average": (1.0, 0.0),
        "sgd": (1.0, 0.0),
        "nesterov": (DILOCO_LR, DILOCO_MOMENTUM),
    }
    if outer not in defaults:
        raise ValueError(f"outer={outer}: one of {', '.join(defaults)}")
    if outer == "average" and not lr is momentum is None:
        raise ValueError("outer=average has neither outer_lr nor outer_momentum: take outer=sgd")
    default_lr, default_momentum = defaults[outer]
    lr = float(default_lr if lr is None else lr)
    momentum = float(default_momentum if momentum is None else momentum)
    if not 0 < lr < math.inf:
        raise ValueError(f"outer_lr={lr}: above 0, finite")
    if not 0 <= momentum < 1 or (outer == "nesterov" and momentum == 0):
        above = "above" if outer == "nesterov" else "at least"
        raise ValueError(f"outer_momentum={momentum}: {above} 0, below 1")
    options = {"lr": lr, "momentum": momentum, "nesterov": outer == "nesterov"}
    return ServedOptimizer(name="sgd", options=options)


def fragments_of(parameters: Tensors, count: int) -> list[list[str]]:
    """Names in ``count`` parts of about the same bytes: the largest first, to the smallest part."""
    if count > len(parameters):
        raise UsageError(
            f"{count} fragments of a model with {len(parameters)} parameters", field="fragments"
        )
    parts: list[list[str]] = [[] for _ in range(count)]
    sizes = [0] * count
    for name in sorted(parameters, key=lambda name: -parameters[name].nbytes):
        smallest = sizes.index(min(sizes))
        parts[smallest].append(name)
        sizes[smallest] += parameters[name].nbytes
    return parts
