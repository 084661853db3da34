"""Topologies and their weights: connected, doubly stochastic, and as fast as they say."""

from __future__ import annotations

import numpy as np
import pytest

from elasticps.strategies.topology import TOPOLOGIES, Graph, contraction, graph, metropolis

WORLDS = [1, 2, 3, 5, 7, 8, 12, 16, 31]
EVERY = pytest.mark.parametrize("topology", TOPOLOGIES)
EVERY_WORLD = pytest.mark.parametrize("world", WORLDS)


def reachable(neighbours: Graph, start: int = 0) -> set[int]:
    found, edge = {start}, [start]
    while edge:
        edge = [other for rank in edge for other in neighbours[rank] if other not in found]
        found.update(edge)
    return found


def distance(values: np.ndarray) -> float:
    """Of all ranks to their mean (Frobenius)."""
    return float(np.linalg.norm(values - values.mean(axis=0)))


@EVERY
@EVERY_WORLD
def test_a_graph_is_connected_and_has_no_loops_nor_one_way_streets(
    topology: str, world: int
) -> None:
    neighbours = graph(topology, world, seed=3)
    assert reachable(neighbours) == set(range(world))
    for rank, others in enumerate(neighbours):
        assert rank not in others
        assert all(rank in neighbours[other] for other in others)


@EVERY
@EVERY_WORLD
def test_weights_are_symmetric_and_doubly_stochastic(topology: str, world: int) -> None:
    weights = metropolis(graph(topology, world, seed=3))
    assert (weights >= 0).all()
    np.testing.assert_array_equal(weights, weights.T)
    np.testing.assert_allclose(weights.sum(axis=0), 1, atol=1e-12)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-12)


@EVERY
@EVERY_WORLD
def test_a_mixing_step_keeps_the_mean_and_contracts_as_the_second_eigenvalue_says(
    topology: str, world: int
) -> None:
    weights = metropolis(graph(topology, world, seed=3))
    values = np.random.default_rng(world).normal(size=(world, 1000)).astype(np.float32)
    rate = contraction(weights)
    assert rate < 1 - 1e-6
    for _ in range(10):
        mixed = (weights.astype(np.float32) @ values).astype(np.float32)
        np.testing.assert_allclose(mixed.mean(axis=0), values.mean(axis=0), atol=1e-6)
        assert distance(mixed) <= rate * distance(values) + 1e-3
        values = mixed


@EVERY
@pytest.mark.parametrize("world", [3, 7, 12, 16])
def test_the_rate_is_reached_by_the_slowest_direction(topology: str, world: int) -> None:
    """The bound is tight: along the second eigenvector the distance falls at just that rate."""
    weights = metropolis(graph(topology, world, seed=3))
    rate = contraction(weights)
    values, vectors = np.linalg.eigh(weights)
    slowest = vectors[:, [int(np.argsort(np.abs(values))[-2])]]
    assert distance(weights @ slowest) == pytest.approx(rate * distance(slowest), abs=1e-9)


def test_all_ranks_draw_the_same_random_graph_and_another_for_another_seed() -> None:
    assert graph("random", 16, seed=5) == graph("random", 16, seed=5)
    assert graph("random", 16, seed=5) != graph("random", 16, seed=6)


def test_a_torus_is_as_near_to_a_square_as_it_can_be() -> None:
    assert {len(others) for others in graph("torus", 16)} == {4}
    assert graph("torus", 7) == graph("ring", 7)


def test_denser_graphs_mix_faster() -> None:
    rates = [contraction(metropolis(graph(name, 16))) for name in ("ring", "torus", "exponential")]
    assert rates == sorted(rates, reverse=True)
    assert contraction(metropolis(graph("complete", 16))) == pytest.approx(0, abs=1e-12)
