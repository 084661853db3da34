"""Affinity: a wish says who leads, as far as replicas, their spread and their balance allow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from random import Random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from elasticps.core.affinity import MAX_SPANS, affinities, joined
from elasticps.core.ids import BlockId, NodeId, ServerId, node_of
from elasticps.core.placement import Site, place, spread
from elasticps.core.planner import targets
from tests.support.placements import (
    Situation,
    any_zones,
    clusters,
    equals,
    held,
    led,
    near_weights,
    replica_counts,
    replica_shares,
    site,
    situations,
    wild_weights,
)
from tests.support.planned_cluster import Cluster
from tests.support.properties import REPRODUCIBLE

Wishes = Mapping[int, Sequence[NodeId]]
NODES = [NodeId(f"n{number}") for number in range(7)]


@st.composite
def wished(draw: st.DrawFn, cluster: st.SearchStrategy[list[Site]]) -> tuple[Situation, Wishes]:
    """Some blocks are wished for by one or two nodes, of which not all exist."""
    situation = draw(situations(cluster))
    blocks = st.integers(0, len(situation[0]) - 1)
    nodes = st.lists(st.sampled_from([*NODES, NodeId("gone")]), min_size=1, max_size=2, unique=True)
    return situation, draw(st.dictionaries(blocks, nodes))


anywhere = wished(clusters(weights=wild_weights, zones=any_zones))
among_equals = wished(clusters(zones=any_zones))


# -- what stays above a wish --------------------------------------------------------------------


@REPRODUCIBLE
@given(anywhere, replica_counts)
def test_whatever_is_wished_each_block_has_its_replicas_apart(
    case: tuple[Situation, Wishes], replicas: int
) -> None:
    (sizes, sites, current), wishes = case
    room = spread(sites, replicas)
    for home in place(sizes, sites, replicas=replicas, current=current, wishes=wishes):
        assert len(home) == room.copies
        assert len({room.domains[server] for server in home}) == room.copies


@REPRODUCIBLE
@given(among_equals, replica_counts)
def test_whatever_is_wished_equal_sites_hold_equally_much(
    case: tuple[Situation, Wishes], replicas: int
) -> None:
    """With one replica who leads also holds: there wishes go less than a block beyond a share."""
    (sizes, sites, current), wishes = case
    assume(any(sizes))
    load = held(sizes, place(sizes, sites, replicas=replicas, current=current, wishes=wishes))
    for server, share in replica_shares(sizes, sites, replicas).items():
        assert load[server] - share < 2 * max(sizes)


@REPRODUCIBLE
@given(wished(clusters(weights=near_weights, zones=any_zones)), replica_counts)
def test_what_is_led_by_wishes_is_less_than_a_block_above_the_share_of_all_replicas(
    case: tuple[Situation, Wishes], replicas: int
) -> None:
    (sizes, sites, current), wishes = case
    assume(any(sizes))
    homes = place(sizes, sites, replicas=replicas, current=current, wishes=wishes)
    shares = replica_shares(sizes, sites, replicas)
    load = led(sizes, homes)
    for server, share in shares.items():
        assert load[server] - share < 2 * max(sizes)


@REPRODUCIBLE
@given(anywhere, replica_counts)
def test_wishes_for_a_node_that_is_gone_change_nothing(
    case: tuple[Situation, Wishes], replicas: int
) -> None:
    (sizes, sites, current), wishes = case
    dead = {block: [NodeId("gone")] for block in wishes}
    plain = place(sizes, sites, replicas=replicas, current=current)
    assert place(sizes, sites, replicas=replicas, current=current, wishes=dead) == plain


# -- what a wish does ---------------------------------------------------------------------------


@REPRODUCIBLE
@given(anywhere, replica_counts)
def test_the_same_wishes_ask_for_no_further_moves(
    case: tuple[Situation, Wishes], replicas: int
) -> None:
    (sizes, sites, current), wishes = case
    homes = place(sizes, sites, replicas=replicas, current=current, wishes=wishes)
    assert place(sizes, sites, replicas=replicas, current=homes, wishes=wishes) == homes


def test_stages_of_unequal_size_are_led_where_they_compute_and_held_in_equal_parts() -> None:
    """One of three nodes computes with half of the blocks; two copies of each."""
    sizes, sites = [4] * 60, equals(3)
    bounds = {"n0": range(1, 31), "n1": range(31, 51), "n2": range(51, 60)}
    wishes = {block: [NodeId(node)] for node, blocks in bounds.items() for block in blocks}
    homes = place(sizes, sites, replicas=2, current=place(sizes, sites, replicas=2), wishes=wishes)
    assert all(node_of(homes[block][0]) == node for block, (node,) in wishes.items())
    assert set(held(sizes, homes).values()) == {4 * 40}


def test_with_two_nodes_and_two_copies_a_wish_moves_no_bytes() -> None:
    sizes, sites = [4] * 20, equals(2)
    before = place(sizes, sites, replicas=2)
    wishes = {block: [NodeId("n1")] for block in range(20)}
    homes = place(sizes, sites, replicas=2, current=before, wishes=wishes)
    assert [set(home) for home in homes] == [set(home) for home in before]
    assert {home[0] for home in homes} == {"n1/1"}


def test_what_several_wish_for_stays_with_who_leads_it_and_else_is_shared() -> None:
    """As the first stages of two pipelines do."""
    sizes, sites = [4] * 40, equals(4)
    wishes: Wishes = {
        block: [NodeId("n0"), NodeId("n2")] if block < 20 else [NodeId("n1"), NodeId("n3")]
        for block in range(40)
    }
    before = place(sizes, sites)
    homes = place(sizes, sites, current=before, wishes=wishes)
    assert set(led(sizes, homes).values()) == {40}
    for block, nodes in wishes.items():
        assert node_of(homes[block][0]) in nodes
        if node_of(before[block][0]) in nodes:
            assert homes[block] == before[block]


def test_with_one_copy_a_wish_for_everything_is_heeded_up_to_a_fair_share() -> None:
    sizes, sites = [4] * 40, equals(4)
    wishes = {block: [NodeId("n2")] for block in range(40)}
    homes = place(sizes, sites, current=place(sizes, sites), wishes=wishes)
    assert Counter(home[0] for home in homes)[ServerId("n2/1")] == 10


def test_a_wish_without_sites_is_none() -> None:
    assert place([4], [], wishes={0: [NodeId("n0")]}) == [()]


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("seed", range(6))
def test_while_wishes_and_servers_change_the_plan_keeps_its_promises_and_comes_to_rest(
    replicas: int, seed: int
) -> None:
    random = Random(seed)
    cluster = Cluster(30, replicas, random)
    cluster.balanced = False
    for number in range(4):
        cluster.add(ServerId(f"n{number}/1"))
    cluster.begin()
    cluster.settle()
    for turn in range(8):
        nodes = [node_of(server) for server in cluster.alive]
        bounds = sorted(random.sample(range(2, 30), len(nodes) - 1))
        parts = zip([1, *bounds], [*bounds, 30], strict=True)
        stages = dict(zip(nodes, parts, strict=True))
        told = {node: [(BlockId(first), BlockId(stop))] for node, (first, stop) in stages.items()}
        cluster.wishes = affinities(told, 30)
        for _ in range(random.randint(1, 4)):
            cluster.catch_up(share=0.4)
            cluster.step()
        if turn == 3 and replicas > 1:
            cluster.alive.pop(random.randrange(4))
        if turn == 5:
            cluster.add(ServerId("late/1"))
        cluster.settle()
        asked = targets(
            cluster.sizes, cluster.entries, cluster.sites, cluster.alive, replicas, cluster.wishes
        )
        assert asked == [one.holders for one in cluster.entries]
        if replicas > 1:
            room = min(replicas, len(cluster.sites)) * sum(cluster.sizes) / len(cluster.sites)
            for node, (first, stop) in stages.items():
                if sum(cluster.sizes[first:stop]) <= room and f"{node}/1" in cluster.alive:
                    leaders = {node_of(one.primary) for one in cluster.entries[first:stop]}
                    assert leaders == {node}


# -- how wishes are told ------------------------------------------------------------------------


def span(first: int, stop: int) -> tuple[BlockId, BlockId]:
    return BlockId(first), BlockId(stop)


def test_spans_are_joined_and_bounded() -> None:
    spans = [span(8, 9), span(1, 3), span(3, 5), span(2, 4), span(7, 7), span(6, 2)]
    assert joined(spans) == (span(1, 5), span(8, 9))
    assert len(joined(span(2 * n, 2 * n + 1) for n in range(2 * MAX_SPANS))) == MAX_SPANS


def test_who_wishes_for_what_is_within_the_job_and_never_the_ledger() -> None:
    told = {NodeId("b"): [span(0, 3)], NodeId("a"): [span(2, 1 << 60)]}
    assert affinities(told, 4) == {1: ["b"], 2: ["a", "b"], 3: ["a"]}


def test_a_zone_is_not_shared_for_a_wish() -> None:
    """The copy in the wished node's zone goes."""
    sites = [site("a", zone="x"), site("b", zone="x"), site("c", zone="y")]
    current = [[ServerId("a/1"), ServerId("c/1")]]
    homes = place([4], sites, replicas=2, current=current, wishes={0: [NodeId("b")]})
    assert homes == [("b/1", "c/1")]
