"""Who mixes with whom, and by what weights: the graphs of decentralised training, in numbers alone.

A graph is undirected and connected, over the ranks 0 to ``world - 1``: for each rank its
neighbours. Every rank computes the same one from the same arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from random import Random

import numpy as np

Graph = list[frozenset[int]]
Weights = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def graph(topology: str, world: int, seed: int = 0) -> Graph:
    """The graph of this name; ``seed`` is for ``random``. Raises KeyError for an unknown name."""
    return TOPOLOGIES[topology](world, seed)


def ring(world: int, _: int = 0) -> Graph:
    return _graph(world, ((rank, rank + 1) for rank in range(world)))


def torus(world: int, _: int = 0) -> Graph:
    """Rows of rings in a ring, as near to a square as ``world`` allows; a prime is a ring."""
    rows = max(each for each in range(1, math.isqrt(world) + 1) if world % each == 0)
    columns = world // rows
    edges = []
    for rank in range(world):
        row, column = divmod(rank, columns)
        edges.append((rank, row * columns + (column + 1) % columns))
        edges.append((rank, (row + 1) % rows * columns + column))
    return _graph(world, edges)


def exponential(world: int, _: int = 0) -> Graph:
    """Neighbours at distances 1, 2, 4, 8, ... (Assran et al. 2019, made symmetric)."""
    hops = [1 << power for power in range(max(1, (world - 1).bit_length()))]
    return _graph(world, ((rank, rank + hop) for rank in range(world) for hop in hops))


def complete(world: int, _: int = 0) -> Graph:
    return _graph(world, ((rank, other) for rank in range(world) for other in range(rank)))


def random(world: int, seed: int = 0) -> Graph:
    """Two rings, each through all ranks in an order drawn from ``seed``."""
    edges = []
    source = Random(f"topology:{seed}")  # noqa: S311 - all ranks are to draw the same
    for _ in range(2):
        order = source.sample(range(world), world)
        edges += [(order[place], order[(place + 1) % world]) for place in range(world)]
    return _graph(world, edges)


TOPOLOGIES: dict[str, Callable[[int, int], Graph]] = {
    "ring": ring,
    "torus": torus,
    "exponential": exponential,
    "complete": complete,
    "random": random,
}


def metropolis(neighbours: Graph) -> Weights:
    """Symmetric, doubly stochastic weights of a graph: what each rank takes of each.

    w_ij = 1 / (1 + max(degree i, degree j)) for neighbours, the rest is a rank's own
    (Metropolis-Hastings; Xiao, Boyd and Kim 2007, section 2).
    """
    world = len(neighbours)
    weights = np.zeros((world, world))
    for rank, others in enumerate(neighbours):
        for other in others:
            weights[rank, other] = 1 / (1 + max(len(others), len(neighbours[other])))
        weights[rank, rank] = 1 - weights[rank].sum()
    return weights


def contraction(weights: Weights) -> float:
    """By what a mixing step shrinks the distance to the mean, at least.

    It is the second largest of the eigenvalues' absolute values; 0 where there is one rank.
    """
    moduli = np.sort(np.abs(np.linalg.eigvalsh(weights)))
    return float(moduli[-2]) if len(moduli) > 1 else 0.0


def _graph(world: int, edges: Iterable[tuple[int, int]]) -> Graph:
    neighbours: list[set[int]] = [set() for _ in range(world)]
    for one, other in edges:
        if one % world != other % world:
            neighbours[one % world].add(other % world)
            neighbours[other % world].add(one % world)
    return [frozenset(each) for each in neighbours]
