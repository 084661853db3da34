"""What becomes of a placement's proposal: sound ones are planned, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random

import msgspec
import pytest

from elasticps.core.ids import BlockId, JobName, NodeId, PlanEpoch, ServerId
from elasticps.core.load_aware import balanced
from elasticps.core.placement import Site
from elasticps.core.plan import Entry
from elasticps.core.planner import first_plan, next_plan, targets
from elasticps.core.proposal import Load, Situation, checked, situation_of, wanted

A, B, C, D = (ServerId(f"n{number}/x") for number in range(1, 5))
SIZES = [8, 8, 8, 8]
ALL = [A, B, C, D]


def site(server: ServerId, zone: str = "") -> Site:
    return Site(server=server, node=NodeId(server[:2]), zone=zone)


def entry(block: int, primary: ServerId, *others: ServerId, learners: Sequence[ServerId] = ()):
    return Entry(
        block=BlockId(block),
        primary=primary,
        in_sync=others,
        learners=tuple(learners),
        epoch=PlanEpoch(5),
    )


PLAN = [entry(0, A, B), entry(1, B, C), entry(2, C, A), entry(3, A, B)]


def wishes(
    proposal: Mapping[int, Sequence[ServerId]],
    plan: Sequence[Entry] = PLAN,
    sites: Sequence[ServerId] = ALL,
    alive: Sequence[ServerId] = ALL,
) -> list[tuple[ServerId, ...]]:
    proposed = {BlockId(block): servers for block, servers in proposal.items()}
    return wanted(proposed, SIZES, plan, [site(server) for server in sites], alive, replicas=2)


def situation(
    plan: Sequence[Entry] = PLAN, sites: Sequence[Site] | None = None, replicas: int = 2
) -> Situation:
    sites = sites or [site(server) for server in ALL]
    servers = [each.server for each in sites]
    return situation_of(JobName("job"), SIZES, plan, sites, servers, replicas, {}, {})


# -- what is planned ----------------------------------------------------------------------------


def test_what_is_proposed_is_wanted_and_the_rest_stays_however_uneven() -> None:
    assert wishes({1: (D, C)}) == [(A, B), (D, C), (C, A), (A, B)]
    assert wishes({}) == [(A, B), (B, C), (C, A), (A, B)]


def test_blocks_on_a_server_that_is_gone_get_another_and_the_others_stay() -> None:
    living = [B, C, D]
    homes = wishes({}, sites=living, alive=living)
    assert homes[1] == (B, C)
    for home, was in zip(homes, PLAN, strict=True):
        assert len(set(home)) == 2
        assert set(home) <= set(living)
        assert set(was.holders) & set(living) <= set(home)


def test_a_proposal_for_a_server_that_is_gone_is_not_followed() -> None:
    living = [A, B, C]
    assert wishes({1: (D, C)}, sites=living, alive=living)[1] == (B, C)


def test_a_move_under_way_is_not_undone() -> None:
    moving = [entry(0, A, B), entry(1, B, C, learners=[D]), *PLAN[2:]]
    assert D in wishes({1: (A, B)}, plan=moving)[1]


def test_a_drained_server_is_left_whatever_was_proposed() -> None:
    homes = wishes({2: (C, A)}, sites=[A, B, D])
    assert all(C not in home for home in homes)
    assert [len(home) for home in homes] == [2, 2, 2, 2]


def test_without_a_site_the_blocks_stay_on_the_living() -> None:
    assert wishes({1: (D, C)}, sites=[], alive=[A, C]) == [(A,), (C,), (C, A), (A,)]


def test_the_plan_takes_one_step_towards_what_is_wanted() -> None:
    sites = [site(server) for server in ALL]
    planned = next_plan(SIZES, PLAN, sites, ALL, [], 2, wishes({1: (D, C)}))
    (changed,) = planned.changed
    assert (changed.block, changed.learners, changed.goal) == (1, (D,), (D, C))
    assert planned.pending_moves == 1


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("proposal", "fault"),
    [
        ({9: (A, B)}, "block 9 is not the job's"),
        ({1: (A, ServerId("n9/x"))}, "'n9/x' is no server"),
        ({1: (A,)}, "1 replicas where 2 are wanted"),
        ({1: (A, B, C)}, "3 replicas where 2 are wanted"),
        ({1: (A, A)}, "share a node"),
    ],
)
def test_an_unsound_proposal_is_refused_with_the_block_that_is_wrong(proposal, fault) -> None:
    with pytest.raises(ValueError, match=fault):
        checked(proposal, situation())


def test_replicas_in_one_zone_are_refused_where_there_are_zones_enough() -> None:
    zones = [site(A, "z1"), site(B, "z1"), site(C, "z2"), site(D, "z2")]
    with pytest.raises(ValueError, match="share a node or a zone"):
        checked({BlockId(1): (A, B)}, situation(sites=zones))
    assert checked({BlockId(1): (A, C)}, situation(sites=zones)).proposal == {1: (A, C)}


def test_fewer_replicas_are_right_where_there_are_fewer_nodes() -> None:
    alone = [entry(block, A) for block in range(4)]
    assert checked({BlockId(1): (A,)}, situation(alone, [site(A)])).proposal == {1: (A,)}


# -- what is told -------------------------------------------------------------------------------


def test_only_what_the_present_primary_measured_is_told() -> None:
    loads = {(A, BlockId(0)): Load(bytes_per_s=1.0), (C, BlockId(1)): Load(bytes_per_s=2.0)}
    totals = {A: Load(bytes_per_s=3.0), ServerId("gone/x"): Load()}
    sites = [site(server) for server in ALL]
    told = situation_of(JobName("job"), SIZES, PLAN, sites, ALL, 2, loads, totals)
    assert [block.load.bytes_per_s for block in told.blocks] == [1.0, 0.0, 0.0, 0.0]
    assert set(told.server_loads) == {A}
    again = msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Situation)
    assert again == told


@pytest.mark.parametrize("seed", range(40))
def test_balanced_as_a_plugin_proposes_what_the_leader_decides_by_itself(seed: int) -> None:
    random = Random(seed)
    sizes = [random.choice([1, 4, 9]) for _ in range(random.randint(1, 12))]
    replicas = random.randint(1, 3)
    sites = [site(server) for server in ALL[: random.randint(1, 4)]]
    plan = [
        Entry(block=each.block, primary=each.primary, in_sync=each.learners)
        for each in first_plan(sizes, sites, replicas)
    ]
    after = [site(server) for server in random.sample(ALL, random.randint(1, 4))]
    alive = [each.server for each in {each.server: each for each in [*sites, *after]}.values()]
    told = situation_of(JobName("job"), sizes, plan, after, alive, replicas, {}, {})
    proposal = balanced(told)
    placed = checked(proposal, told).proposal
    assert wanted(placed, sizes, plan, after, alive, replicas) == targets(
        sizes, plan, after, alive, replicas
    )
