"""Gossip: each worker steps by itself, and mixes with its neighbours; no server takes part."""

from __future__ import annotations

import torch

from elasticps.api.strategy import Worker
from elasticps.errors import UsageError
from elasticps.strategies.among_peers import AmongPeers, difference
from elasticps.strategies.flat import flattened, scatter
from elasticps.strategies.topology import TOPOLOGIES, graph, metropolis

VALUES = "values"


class Gossip(AmongPeers):
    """Decentralised parallel SGD (Lian et al. 2017, algorithm 1), with any local optimizer.

    theta_i += sum_j w_ij (theta_j - theta_i), after a step on this worker's own samples. The
    weights are doubly stochastic, so that mixing keeps the workers' mean. When the values are
    published, all workers take their mean (Gossip-PGA, Chen et al. 2021): it is what the shards
    have, and what is evaluated at the end.
    """

    def __init__(self, topology: str = "ring", publish_every: int = 100) -> None:
        super().__init__(publish_every)
        if topology not in TOPOLOGIES:
            raise UsageError(
                f"no topology {topology!r}", field="topology", limit=", ".join(TOPOLOGIES)
            )
        self._topology = topology

    def prepare(self, worker: Worker) -> None:
        worker.local_optimizer.step()

    def attempt(self, worker: Worker, *, publishes: bool) -> bool:
        parameters = list(worker.parameters.values())
        if publishes:
            if not worker.agree(difference(worker), weight=1.0):
                return False
            worker.pull()
            scatter(flattened(list(worker.served.values())), parameters)
            return True
        mixed = self._mixed(worker, flattened(parameters))
        if not worker.agree():
            return False
        scatter(mixed, parameters)
        return True

    def _mixed(self, worker: Worker, mine: torch.Tensor) -> torch.Tensor:
        """This worker's values and its neighbours', by the weights of the present members."""
        neighbours = graph(self._topology, worker.world, worker.generation)
        weights = metropolis(neighbours)[worker.rank]
        worker.peers.put(VALUES, mine)
        theirs = worker.peers.fetch_all(dict.fromkeys(neighbours[worker.rank], VALUES))
        mixed = mine.clone()
        for rank in sorted(theirs):
            mixed.add_(theirs[rank].sub_(mine), alpha=float(weights[rank]))
        return mixed
