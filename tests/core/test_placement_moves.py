"""Placement moves few bytes: of a join, a leave and a death, and with moves under way."""

from __future__ import annotations

import itertools
from fractions import Fraction

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from elasticps.core.ids import ServerId
from elasticps.core.placement import Move, Site, least_bytes, moves, place
from tests.support.placements import (
    Situation,
    any_blocks,
    anywhere,
    clusters,
    equal_blocks,
    equals,
    held,
    led,
    moved,
    near_weights,
    replica_counts,
    servers,
    shares,
    site,
)

# 3: minimal movement.


@settings(deadline=None)
@given(anywhere, replica_counts)
def test_what_was_placed_stays_placed(situation: Situation, replicas: int) -> None:
    sizes, sites, current = situation
    places = place(sizes, sites, replicas=replicas, current=current)
    assert place(sizes, sites, replicas=replicas, current=places) == places


@settings(deadline=None)
@given(equal_blocks, st.integers(1, 12))
def test_a_join_moves_one_share_to_the_newcomer_and_nothing_elsewhere(
    sizes: list[int], count: int
) -> None:
    before = place(sizes, equals(count))
    joined = equals(count + 1)
    after = place(sizes, joined, current=before)
    copies = moves(sizes, before, after)
    assert {move.target for move in copies} <= {joined[-1].server}
    assert abs(sum(move.size for move in copies) - Fraction(sum(sizes), count + 1)) < max(sizes)


@settings(deadline=None)
@given(any_blocks, clusters(weights=near_weights), near_weights)
def test_a_join_moves_blocks_elsewhere_only_once_the_newcomer_has_its_share(
    sizes: list[int], sites: list[Site], weight: float
) -> None:
    before = place(sizes, sites)
    newcomer = site("new", weight=weight)
    after = place(sizes, [*sites, newcomer], current=before)
    targets = {move.target for move in moves(sizes, before, after)}
    share = shares(sizes, [*sites, newcomer])[newcomer.server]
    assert targets <= {newcomer.server} or led(sizes, after)[newcomer.server] >= share


@settings(deadline=None)
@given(any_blocks, st.integers(2, 8), st.integers(2, 3))
def test_a_join_with_backups_moves_one_share_a_replica(
    sizes: list[int], count: int, replicas: int
) -> None:
    assume(count >= replicas and any(sizes))
    before = place(sizes, equals(count), replicas=replicas)
    joined = equals(count + 1)
    after = place(sizes, joined, replicas=replicas, current=before)
    copies = moves(sizes, before, after)
    elsewhere = sum(move.size for move in copies if move.target != joined[-1].server)
    share = Fraction(replicas * sum(sizes), count + 1)
    assert elsewhere <= max(sizes)
    assert abs(sum(move.size for move in copies) - elsewhere - share) < max(sizes)


@settings(deadline=None)
@given(equal_blocks, st.integers(2, 12), st.data())
def test_a_leave_moves_only_the_blocks_of_the_leaver(
    sizes: list[int], count: int, data: st.DataObject
) -> None:
    before = place(sizes, equals(count))
    leaver = data.draw(st.sampled_from(equals(count)))
    rest = [one for one in equals(count) if one != leaver]
    after = place(sizes, rest, current=before)
    for was, will in zip(before, after, strict=True):
        assert was == will or was == (leaver.server,)


@settings(deadline=None)
@given(any_blocks, st.integers(3, 8), st.integers(2, 3), st.data())
def test_a_leave_copies_little_more_than_the_replicas_of_the_leaver(
    sizes: list[int], count: int, replicas: int, data: st.DataObject
) -> None:
    before = place(sizes, equals(count), replicas=replicas)
    leaver = data.draw(st.sampled_from(equals(count)))
    rest = [one for one in equals(count) if one != leaver]
    after = place(sizes, rest, replicas=replicas, current=before)
    lost = held(sizes, before)[leaver.server]
    assert moved(sizes, before, after) <= lost + lost // 4 + 2 * max(sizes)


@settings(deadline=None)
@given(anywhere)
def test_no_more_moves_than_if_blocks_could_be_cut(situation: Situation) -> None:
    sizes, sites, current = situation
    assume(any(sizes))
    before = current or [[] for _ in sizes]
    after = place(sizes, sites, current=before)
    assert moved(sizes, before, after) <= least_bytes(sizes, sites, before)


def cheapest(sizes: list[int], sites: list[Site], current: list[ServerId]) -> int:
    """The fewest bytes that any balanced plan moves, by trying all plans."""
    ideal = shares(sizes, sites)
    costs = []
    for plan in itertools.product([one.server for one in sites], repeat=len(sizes)):
        load = led(sizes, [(server,) for server in plan])
        if all(abs(load[server] - share) < max(sizes) for server, share in ideal.items()):
            stay = zip(sizes, plan, current, strict=True)
            costs.append(sum(size for size, to, at in stay if to != at))
    return min(costs)


@settings(derandomize=True, max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 20), st.sampled_from(["a", "b", "c", "gone"])),
        min_size=1,
        max_size=6,
    ),
    near_weights,
)
def test_less_than_one_block_more_moves_than_in_the_cheapest_balanced_plan(
    blocks: list[tuple[int, str]], weight: float
) -> None:
    sizes = [size for size, _ in blocks]
    sites = [site("a"), site("b"), site("c", weight=weight)]
    current = [servers(node) for _, node in blocks]
    bytes_moved = moved(sizes, current, place(sizes, sites, current=current))
    best = cheapest(sizes, sites, [home[0] for home in current])
    assert best <= bytes_moved < best + max(sizes)


def test_a_donor_gives_the_block_that_just_suffices() -> None:
    sizes = [10, 9, 3, 2, 1]
    current = [servers("a")] * 5
    after = place(sizes, [site("a"), site("b")], current=current)
    assert [move.block for move in moves(sizes, current, after)] == [2]
    assert led(sizes, after) == {"a/1": 22, "b/1": 3}


@settings(deadline=None)
@given(any_blocks, st.integers(2, 6), st.integers(1, 3), st.data())
def test_a_plan_half_carried_out_leads_to_no_more_copies(
    sizes: list[int], count: int, replicas: int, data: st.DataObject
) -> None:
    before = place(sizes, equals(count), replicas=replicas)
    joined = equals(count + 1)
    goal = place(sizes, joined, replicas=replicas, current=before)
    done = data.draw(st.lists(st.booleans(), min_size=len(sizes), max_size=len(sizes)))
    halfway = [new if ok else old for ok, new, old in zip(done, goal, before, strict=True)]
    after = place(sizes, joined, replicas=replicas, current=halfway)
    both = moved(sizes, before, halfway) + moved(sizes, halfway, after)
    assert both <= moved(sizes, before, goal) + replicas * max(sizes)


def test_moves_name_a_holder_that_stays_as_the_source() -> None:
    current = [servers("a", "b"), servers("a"), (), servers("a", "b")]
    target = [servers("b", "c"), servers("c"), servers("c"), servers("b", "a")]
    assert moves([1, 2, 3, 4], current, target) == [
        Move(block=0, source=ServerId("b/1"), target=ServerId("c/1"), size=1),
        Move(block=1, source=ServerId("a/1"), target=ServerId("c/1"), size=2),
        Move(block=2, source=None, target=ServerId("c/1"), size=3),
    ]


@pytest.mark.parametrize(
    ("current", "nodes", "least"),
    [
        ("aabb", "ab", 0),
        ("aaaa", "ab", 20),
        ("aabb", "abc", 13),
        ("aabb", "ac", 20),
        ("aaab", "ac", 20),
        ("bbbb", "a", 40),
    ],
)
def test_least_bytes_counts_the_lost_and_then_what_receivers_lack(
    current: str, nodes: str, least: int
) -> None:
    at = [servers(node) for node in current]
    assert least_bytes([10] * 4, [site(node) for node in nodes], at) == least


@settings(deadline=None)
@given(any_blocks, st.integers(2, 6), st.integers(1, 3), st.data())
def test_pinned_blocks_stay_and_the_others_settle_around_them(
    sizes: list[int], count: int, replicas: int, data: st.DataObject
) -> None:
    before = place(sizes, equals(count), replicas=replicas)
    pinned = data.draw(st.sets(st.integers(0, len(sizes) - 1)))
    joined = equals(count + 1)
    after = place(sizes, joined, replicas=replicas, current=before, pinned=pinned)
    if replicas <= count:
        assert all(after[block] == before[block] for block in pinned)
    again = place(sizes, joined, replicas=replicas, current=after, pinned=pinned)
    assert again == after


@settings(deadline=None)
@given(equal_blocks, st.integers(2, 7), st.integers(1, 3))
def test_least_bytes_of_a_join_are_its_share_of_all_replicas(
    sizes: list[int], count: int, replicas: int
) -> None:
    assume(count >= replicas)
    before = place(sizes, equals(count), replicas=replicas)
    share = Fraction(replicas * sum(sizes), count + 1)
    least = least_bytes(sizes, equals(count + 1), before, replicas)
    assert share - 1 < least < share + (count + 1) * max(sizes)


def test_least_bytes_of_a_death_are_the_copies_that_it_took() -> None:
    before = place([4] * 60, equals(5), replicas=2)
    taken = sum(4 for home in before if ServerId("n0/1") in home)
    least = least_bytes([4] * 60, equals(5)[1:], before, 2)
    assert taken <= least <= taken + 4 * 4
