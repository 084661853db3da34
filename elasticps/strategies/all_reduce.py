"""All-reduce: the workers sum their gradients among themselves, and each takes the same step."""

from __future__ import annotations

from collections.abc import Callable

import torch

from elasticps.api.strategy import Worker
from elasticps.errors import UsageError
from elasticps.strategies.among_peers import AmongPeers, difference
from elasticps.strategies.flat import common_dtype, pieces
from elasticps.strategies.member_state import Undo


class AllReduce(AmongPeers):
    """Every worker's gradient counts once in each round, weighted by its samples, as in ``sync``.

    The sum is gloo's. Every worker holds the parameters and the optimizer's state, and steps
    identically: the workers are equal to the bit.

    ``torchrun``: the script makes a process group itself, from the variables that torchrun sets,
    and joins nothing (see ``daemon.process_group``); all that is here is not used then.
    """

    def __init__(self, publish_every: int = 100, *, torchrun: bool = False) -> None:
        super().__init__(publish_every)
        if not isinstance(torchrun, bool):
            raise UsageError(f"torchrun of {torchrun!r}", field="torchrun", limit="true or false")

    def attempt(self, worker: Worker, *, publishes: bool) -> bool:
        take = self._summed(worker)
        if not publishes:
            if not worker.agree():
                return False
            take()
            return True
        before = Undo(worker)
        take()
        if worker.agree(difference(worker)):
            return True
        before.restore()
        return False

    def _summed(self, worker: Worker) -> Callable[[], None]:
        """Sum with the others; returns what takes the step that this allows.

        One buffer holds the gradients times this worker's samples, then for each parameter how many
        workers have a gradient for it, then the samples.
        """
        parameters = list(worker.parameters.values())
        size = sum(parameter.numel() for parameter in parameters)
        sums = torch.zeros(size + len(parameters) + 1, dtype=common_dtype(parameters))
        counts = sums[size:-1]
        for index, part in enumerate(pieces(sums, parameters)):
            gradient = parameters[index].grad
            if gradient is not None and worker.weight:
                part.copy_(gradient).mul_(worker.weight)
                counts[index] = 1
        sums[-1] = worker.weight
        worker.peers.sum(sums)

        def take() -> None:
            for index, part in enumerate(pieces(sums, parameters)):
                mean = (part / sums[-1]).to(parameters[index].dtype)
                parameters[index].grad = mean if counts[index] else None
            worker.local_optimizer.step()

        return take
