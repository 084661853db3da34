"""Elastic averaging: each worker has parameters of its own, tied to a common centre by a spring."""

from __future__ import annotations

import torch

from elasticps.api.strategy import ServedOptimizer, Strategy, Worker
from elasticps.errors import UsageError

BETA = 0.9
"""The centre's moving rate that the paper takes for all its experiments (section 5.1)."""


class ElasticAveraging(Strategy):
    """EASGD (Zhang, Choromanska and LeCun 2015, "Deep learning with Elastic Averaging SGD").

    The centre is what the shards hold. Every ``h`` steps (the paper's tau), with x the worker's
    parameters before the step, c the centre, g the gradient at x, and p workers:

    - x <- x - eta g - ``alpha`` (x - c), equation 5, where the script's optimizer takes the step;
    - c <- c + sum of ``alpha`` (x - c) over the workers, equation 6, its beta being p ``alpha``.

    Between, x <- x - eta g. In sync mode all of a round have the same c; in the others each worker
    reads it and moves it alone (algorithm 1). ``alpha`` is 0.9 / p unless told otherwise.
    """

    def __init__(self, h: int = 4, alpha: float | None = None) -> None:
        if h < 1:
            raise ValueError(f"h={h}: at least 1")
        if alpha is not None and not 0 < alpha < 1:
            raise ValueError(f"alpha={alpha}: above 0, below 1")
        self._h = h
        self._alpha = alpha

    @property
    def steps_per_round(self) -> int:
        return self._h

    def served_optimizer(self, chosen: ServedOptimizer) -> ServedOptimizer:
        return ServedOptimizer(name="sgd", options={"lr": 1.0})

    def begin(self, worker: Worker) -> None:
        if worker.backup_workers:
            raise UsageError(
                "a force that a round went on without would act on one side alone",
                field="backup_workers",
                limit="0 with elastic-averaging; async consistency waits for nobody",
            )
        worker.pull()

    def step(self, worker: Worker) -> None:
        if worker.steps_left > 0 and not worker.leaving:
            worker.local_optimizer.step()
            return
        worker.pull()
        in_rounds = worker.consistency == "sync"
        count = worker.pushers if in_rounds else worker.world
        alpha = BETA / count if self._alpha is None else self._alpha
        # A round's pushes act as their mean, and the centre is to move by their sum.
        share = count if in_rounds else 1
        here, centre = worker.parameters, worker.served
        force = {name: alpha * (here[name].detach() - centre[name]) for name in here}
        pushed = {name: -share * item for name, item in force.items()}
        ticket = worker.start_exchange(pushed, weight=1.0, pull=())
        worker.local_optimizer.step()
        with torch.no_grad():
            for name, item in force.items():
                here[name].sub_(item)
        ticket.wait()

    def end(self, worker: Worker) -> None:
        """The centre is the model."""
        worker.pull()
        with torch.no_grad():
            for name, centre in worker.served.items():
                worker.parameters[name].copy_(centre)
