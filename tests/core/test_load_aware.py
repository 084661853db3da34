"""Placement by load: it moves what pays, not for noise, and never two replicas to one node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import pytest

from elasticps.core.ids import BlockId, JobName, NodeId, ServerId
from elasticps.core.load_aware import Rules, propose
from elasticps.core.placement import Site
from elasticps.core.proposal import Load, PlacedBlock, Proposal, Situation, checked

A, B, C = (ServerId(f"n{number}/x") for number in (1, 2, 3))
RULES = Rules()
Home = tuple[ServerId, ...]


def load(apply: float, gigabytes: float = 0.0, measured_s: float = 60.0) -> Load:
    return Load(bytes_per_s=gigabytes * 1e9, apply_s_per_s=apply, measured_s=measured_s)


def block(number: int, home: Home, each: Load, size: int = 1 << 20, **more: object) -> PlacedBlock:
    return PlacedBlock(
        block=BlockId(number),
        size=size,
        primary=home[0],
        in_sync=home[1:],
        destined=home,
        load=each,
        **more,  # type: ignore[arg-type]
    )


def situation(blocks: Sequence[PlacedBlock], servers: Sequence[ServerId]) -> Situation:
    """``servers`` do nothing else than these blocks."""
    busy = burdens(blocks, {each.block: each.destined for each in blocks}, servers)
    return Situation(
        job=JobName("job"),
        replicas=max(len(each.destined) for each in blocks),
        sites=tuple(Site(server=server, node=NodeId(server[:2])) for server in servers),
        blocks=tuple(blocks),
        server_loads={server: load(burden) for server, burden in busy.items()},
    )


def burdens(
    blocks: Sequence[PlacedBlock], homes: Mapping[BlockId, Home], servers: Sequence[ServerId]
) -> dict[ServerId, float]:
    """Applying is every replica's, the traffic the primary's."""
    busy = dict.fromkeys(servers, 0.0)
    for each in blocks:
        for server in homes[each.block]:
            busy[server] += each.load.apply_s_per_s
        busy[homes[each.block][0]] += each.load.bytes_per_s / RULES.bandwidth
    return busy


HOT_AND_COLD = [
    block(1, (A,), load(0.4)),
    block(2, (A,), load(0.3)),
    block(3, (A,), load(0.01)),
    block(4, (B,), load(0.05)),
]


def test_a_hot_block_leaves_the_busiest_server() -> None:
    """The one that leaves both the least busy."""
    assert propose(situation(HOT_AND_COLD, [A, B]), RULES) == {BlockId(2): (B,)}


def test_a_role_changes_hands_before_bytes_move() -> None:
    """C would be less busy than B, which holds the block already."""
    blocks = [block(number, (A, B), load(0.01, 0.4), size=2 << 30) for number in (1, 2)]
    assert propose(situation(blocks, [A, B, C]), RULES)[BlockId(1)] == (B, A)


def test_nothing_moves_within_the_band() -> None:
    blocks = [block(1, (A,), load(0.5)), block(2, (B,), load(0.4)), block(3, (A,), load(0.04))]
    assert propose(situation(blocks, [A, B]), RULES) == {}


def test_nothing_moves_for_what_hardly_costs_anything() -> None:
    blocks = [block(number, (A,), load(0.004)) for number in range(4)]
    assert propose(situation(blocks, [A, B]), RULES) == {}
    assert propose(situation(blocks, [A, B]), Rules(floor=0.0)) != {}


def test_nothing_moves_before_all_has_been_measured_for_a_while() -> None:
    fresh = [*HOT_AND_COLD, block(5, (B,), load(0.01, measured_s=9.0))]
    assert propose(situation(fresh, [A, B]), RULES) == {}
    assert propose(situation(fresh, [A, B]), Rules(settle_s=8.0)) != {}


def test_nothing_moves_while_something_moves() -> None:
    moving = [*HOT_AND_COLD[:3], block(4, (B,), load(0.05), learners=(A,))]
    assert propose(situation(moving, [A, B]), RULES) == {}


def test_no_move_costs_more_than_it_gains() -> None:
    """0.35 s a second for 60 s, against three times the block's bytes at 1 GB/s."""
    heavy = [block(1, (A,), load(0.4), size=8 << 30), block(2, (A,), load(0.35), size=8 << 30)]
    assert propose(situation(heavy, [A, B]), RULES) == {}
    assert propose(situation(heavy, [A, B]), Rules(horizon_s=600.0)) != {}


def test_one_block_that_is_hotter_than_all_others_stays() -> None:
    """Elsewhere it would be as hot."""
    assert propose(situation([block(1, (A,), load(0.9))], [A, B]), RULES) == {}


def test_a_newcomer_gets_its_part_among_many() -> None:
    servers = [ServerId(f"m{number}/x") for number in range(10)]
    blocks = [block(10 * at + n, (servers[at],), load(0.05)) for at in range(9) for n in range(10)]
    proposal = propose(situation(blocks, servers), RULES)
    assert {home[0] for home in proposal.values()} == {servers[9]}
    assert 7 <= len(proposal) <= 9


def test_without_any_load_the_blocks_are_balanced_by_bytes() -> None:
    blocks = [block(number, (A,), Load()) for number in range(4)]
    assert len(propose(situation(blocks, [A, B]), RULES)) == 2


def test_a_server_that_tells_nothing_neither_gives_nor_takes() -> None:
    told = situation(HOT_AND_COLD, [A, B])
    silent = Situation(
        job=told.job,
        replicas=1,
        sites=told.sites,
        blocks=told.blocks,
        server_loads={A: told.server_loads[A]},
    )
    assert propose(silent, RULES) == {}


@pytest.mark.parametrize("seed", range(60))
def test_it_comes_to_rest_and_each_proposal_is_sound_and_lowers_the_highest_burden(
    seed: int,
) -> None:
    random = Random(seed)
    servers = [ServerId(f"m{number}/x") for number in range(random.randint(2, 6))]
    replicas = random.randint(1, min(3, len(servers)))
    blocks = [
        block(
            number,
            tuple(random.sample(servers, replicas)),
            load(random.random() ** 4, random.random() ** 4),
            size=random.choice([1 << 12, 4 << 20]),
        )
        for number in range(random.randint(1, 40))
    ]
    for _ in range(50):
        told = situation(blocks, servers)
        proposal = propose(told, RULES)
        assert checked(proposal, told).proposal == proposal
        if not proposal:
            break
        before = burdens(blocks, {each.block: each.destined for each in blocks}, servers)
        blocks = moved(blocks, proposal)
        after = burdens(blocks, {each.block: each.destined for each in blocks}, servers)
        assert sorted(after.values(), reverse=True) < sorted(before.values(), reverse=True)
    else:
        raise AssertionError("it never rests")


@pytest.mark.parametrize("seed", range(30))
def test_it_does_not_move_for_noise(seed: int) -> None:
    """Loads that waver by a tenth around even ones."""
    random = Random(seed)
    servers = [A, B, C]
    for _ in range(20):
        blocks = [
            block(number, (servers[number % 3],), load(0.02 * random.uniform(0.9, 1.1)))
            for number in range(30)
        ]
        assert propose(situation(blocks, servers), RULES) == {}


def moved(blocks: Sequence[PlacedBlock], proposal: Proposal) -> list[PlacedBlock]:
    return [
        block(each.block, tuple(proposal.get(each.block, each.destined)), each.load, each.size)
        for each in blocks
    ]


@pytest.mark.parametrize("wrong", [{"band": 0.0}, {"floor": -1.0}, {"most": 0}])
def test_rules_that_cannot_be_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Rules(**wrong)  # type: ignore[arg-type]
