"""Local steps between averages, more of them as the learning rate falls: Gu et al. 2024 (QSR)."""

from __future__ import annotations

import torch

from elasticps import ServedOptimizer, Strategy, UsageError, Worker


class QuadraticSynchronization(Strategy):
    """Workers step on their own and average their models every H steps.

    H = max(h, floor((alpha / lr)^2)), the paper's quadratic synchronization rule, with the
    learning rate at the beginning of the H steps and at most ``max_h``. In a worker's first
    ``warmup`` steps H is ``h``. The optimizer that the script chose runs in each worker, with a
    state of its own; the shards hold the average. Raises ValueError for an option out of its range.
    """

    def __init__(self, h: int = 4, alpha: float = 0.0175, max_h: int = 16, warmup: int = 0) -> None:
        if h < 1:
            raise ValueError(f"h is {h}, must be at least 1")
        if max_h < h:
            raise ValueError(f"max_h is {max_h}, must be at least h, which is {h}")
        if alpha < 0:
            raise ValueError(f"alpha is {alpha}, must be at least 0")
        if warmup < 0:
            raise ValueError(f"warmup is {warmup}, must be at least 0")
        self._h = h
        self._max_h = max_h
        self._alpha = alpha
        self._warmup = warmup
        self._taken = 0
        self._since = 0
        self._period = h

    @property
    def steps_per_round(self) -> int:
        return self._max_h

    def served_optimizer(self, chosen: ServedOptimizer) -> ServedOptimizer:
        """What the shards get is how far a worker has come: a step of 1 makes it the average."""
        return ServedOptimizer(name="sgd", options={"lr": 1.0})

    def begin(self, worker: Worker) -> None:
        """Raises UsageError where workers do not exchange in rounds: there is no average then."""
        if worker.consistency != "sync":
            raise UsageError(
                "qsr averages the models of a round", field="consistency", limit="sync"
            )
        _ = worker.served  # asked for here, so that every exchange keeps what it read

    def step(self, worker: Worker) -> None:
        if self._since == 0:
            self._period = self.period(_learning_rate(worker))
        worker.local_optimizer.step()
        self._taken += 1
        self._since += 1
        if self._since < self._period and worker.steps_left > 0 and not worker.leaving:
            return
        self._since = 0
        served = worker.served
        worker.exchange(
            {name: served[name] - item.detach() for name, item in worker.parameters.items()}
        )

    def end(self, worker: Worker) -> None:
        """The model is the average: steps that came after the last one count for nobody."""
        with torch.no_grad():
            for name, parameter in worker.parameters.items():
                parameter.copy_(worker.served[name])

    def period(self, learning_rate: float) -> int:
        """H, as the learning rate is now."""
        if self._taken < self._warmup or learning_rate <= 0:
            return self._h
        wanted = (self._alpha / learning_rate) ** 2
        return max(self._h, int(min(wanted, self._max_h)))


def _learning_rate(worker: Worker) -> float:
    """The largest of the param groups': the one that allows the fewest steps."""
    return max(float(group["lr"]) for group in worker.local_optimizer.param_groups)
