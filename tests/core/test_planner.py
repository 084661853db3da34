"""Plans: step by step to where blocks belong, never without a whole replica on the way."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

import pytest

from elasticps.core.ids import BlockId, PlanEpoch, ServerId
from elasticps.core.plan import Entry
from elasticps.core.planner import MOVES_IN_FLIGHT, Planned, first_plan, next_plan
from elasticps.core.records import CaughtUpRow
from tests.support.planned_cluster import Cluster, settled, site

A, B, C, D = (ServerId(f"{name}/1") for name in "abcd")


def entry(
    primary: ServerId,
    in_sync: tuple[ServerId, ...] = (),
    learners: tuple[ServerId, ...] = (),
    *,
    block: int = 0,
    epoch: int = 5,
    fresh: bool = False,
) -> Entry:
    return Entry(
        block=BlockId(block),
        primary=primary,
        in_sync=in_sync,
        learners=learners,
        epoch=PlanEpoch(epoch),
        fresh=fresh,
    )


def row(learner: ServerId, *, block: int = 0, epoch: int = 5) -> CaughtUpRow:
    return CaughtUpRow(BlockId(block), learner, PlanEpoch(epoch), snapshot_bytes=8)


def step_of(
    before: Entry,
    *,
    sites: str,
    alive: str | None = None,
    rows: Sequence[CaughtUpRow] = (),
    replicas: int = 1,
) -> Planned:
    """The next plan of one block; servers are named by their nodes' letters."""
    named = [ServerId(f"{letter}/1") for letter in sites]
    living = [ServerId(f"{letter}/1") for letter in (alive or sites)]
    return next_plan([8], [before], [site(server) for server in named], living, rows, replicas)


def changed(planned: Planned) -> tuple[ServerId, tuple[ServerId, ...], tuple[ServerId, ...]] | None:
    """The one entry that changed: primary, in-sync backups, learners. None: not for the servers."""
    if all(after.epoch for after in planned.changed):
        return None
    (after,) = planned.changed
    return after.primary, after.in_sync, after.learners


# -- one block ----------------------------------------------------------------------------------


def test_a_block_begins_with_its_backups_as_learners() -> None:
    entries = first_plan([8, 8], [site(A), site(B)], replicas=2)
    assert [one.block for one in entries] == [0, 1]
    assert {one.primary for one in entries} == {A, B}
    for one in entries:
        assert one.fresh
        assert (one.in_sync, len(one.learners)) == ((), 1)
        assert set(one.servers) == {A, B}


@pytest.mark.parametrize(
    ("before", "sites", "alive", "replicas", "after"),
    [
        # nothing to do
        (entry(A), "a", "a", 1, None),
        (entry(A, (B,)), "ab", "ab", 2, None),
        (entry(A, (B,)), "abc", "abc", 2, None),
        (entry(A, (), (B,)), "ab", "ab", 2, None),
        (entry(A, (), (B,)), "b", "ab", 1, None),
        (entry(A, (), (B,)), "ab", "ab", 1, None),
        # a draining server serves until it is relieved
        (entry(A), "b", "ab", 1, (A, (), (B,))),
        (entry(A, (B,)), "bc", "abc", 2, (A, (B,), (C,))),
        (entry(A, (B,)), "b", "ab", 2, (B, (), ())),
        # the dead
        (entry(A, (B,)), "bc", "bc", 2, (B, (), (C,))),
        (entry(A, (B, C)), "bc", "bc", 3, (B, (C,), ())),
        (entry(A, (B,)), "a", "a", 2, (A, (), ())),
        (entry(A, (), (B,)), "a", "a", 2, (A, (), ())),
        (entry(A, (), (B,)), "ac", "ac", 2, (A, (), (C,))),
        # nobody may hold blocks: those that do go on
        (entry(A), "", "a", 1, None),
        (entry(A, (B,)), "", "a", 2, (A, (), ())),
        (entry(A, (), (B,)), "", "ab", 1, (A, (), ())),
        # the learner's server drains before the move is made: the block may as well stay
        (entry(A, (), (B,)), "a", "ab", 1, (A, (), ())),
        (entry(C, (), (B,)), "ac", "abc", 1, (C, (), ())),
    ],
)
def test_the_next_entry_of_a_block(
    before: Entry,
    sites: str,
    alive: str,
    replicas: int,
    after: tuple[ServerId, tuple[ServerId, ...], tuple[ServerId, ...]] | None,
) -> None:
    planned = step_of(before, sites=sites, alive=alive, replicas=replicas)
    assert changed(planned) == after
    assert not planned.orphaned
    assert not planned.arrived


@pytest.mark.parametrize(
    ("before", "sites", "rows", "replicas", "after"),
    [
        (entry(A, (), (B,)), "b", [row(B)], 1, (B, (), ())),
        (entry(A, (), (B,)), "ab", [row(B)], 2, (A, (B,), ())),
        (entry(A, (), (B, C)), "abc", [row(B)], 3, (A, (B,), (C,))),
        (entry(A, (), (B, C)), "abc", [row(C), row(B)], 3, (A, (B, C), ())),
        (entry(A, (B,), (C,)), "bc", [row(C)], 2, (B, (C,), ())),
    ],
)
def test_a_learner_that_caught_up_is_promoted_and_counted_as_arrived(
    before: Entry,
    sites: str,
    rows: list[CaughtUpRow],
    replicas: int,
    after: tuple[ServerId, tuple[ServerId, ...], tuple[ServerId, ...]],
) -> None:
    planned = step_of(before, sites=sites, alive="abc", rows=rows, replicas=replicas)
    assert changed(planned) == after
    assert set(planned.arrived) == set(rows)


@pytest.mark.parametrize(
    "unfit", [row(B, epoch=4), row(B, epoch=6), row(B, block=1), row(C), row(A)]
)
def test_a_promise_counts_for_its_block_its_learner_and_its_epoch_alone(
    unfit: CaughtUpRow,
) -> None:
    before = entry(A, (), (B,))
    planned = step_of(before, sites="b", alive="abc", rows=[unfit])
    assert changed(planned) is None
    assert planned.pending_moves == 1


def test_a_dead_learners_promise_counts_for_nothing() -> None:
    planned = step_of(entry(A, (), (B,)), sites="ac", alive="ac", rows=[row(B)], replicas=2)
    assert changed(planned) == (A, (), (C,))
    assert planned.arrived == ()


@pytest.mark.parametrize("before", [entry(A), entry(A, (B,)), entry(A, (), (C,), fresh=True)])
def test_a_block_without_a_living_replica_is_reported_and_left_as_it_is(before: Entry) -> None:
    planned = step_of(before, sites="cd", replicas=2)
    assert planned.orphaned == (before,)
    assert planned.changed == ()


def test_a_promised_learner_saves_the_block_when_its_last_holder_dies() -> None:
    planned = step_of(entry(A, (), (B,)), sites="b", rows=[row(B)])
    assert changed(planned) == (B, (), ())
    assert planned.orphaned == ()


def test_the_first_primary_stays_marked_until_another_leads() -> None:
    """It may see the second plan without ever having seen the first."""
    before = entry(A, (), (B,), fresh=True)
    (after,) = step_of(before, sites="ac", replicas=2).changed
    assert after.fresh
    (after,) = step_of(before, sites="b", alive="ab", rows=[row(B)]).changed
    assert not after.fresh


def test_a_server_fills_a_bounded_number_of_learners_at_a_time() -> None:
    blocks = 4 * MOVES_IN_FLIGHT
    cluster = Cluster(blocks, 1, Random(0))
    cluster.sizes = [8] * blocks
    cluster.add(A)
    cluster.begin()
    cluster.add(B)
    assert len(cluster.step().changed) == MOVES_IN_FLIGHT
    assert cluster.step().changed == ()
    cluster.catch_up(share=0.5)
    planned = cluster.step()
    assert len(planned.arrived) <= MOVES_IN_FLIGHT
    assert planned.pending_moves == 2 * MOVES_IN_FLIGHT - len(planned.arrived)


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("change", ["join", "drain", "die", "join and die"])
def test_a_move_under_way_is_not_undone(change: str, replicas: int) -> None:
    for seed in range(8):
        cluster = settled(5 + 20 * seed, 5, replicas, seed)
        if "join" in change:
            cluster.add(ServerId("late/1"))
        if "drain" in change:
            cluster.drained.add(cluster.alive[0])
        if "die" in change and replicas > 1:
            cluster.alive.pop(0)
        for _ in range(6):
            before = {one.block: one.learners for one in cluster.entries}
            cluster.catch_up(share=0.4)
            for after in cluster.step().changed:
                assert set(before[after.block]) <= set(after.servers)
        cluster.settle()


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("nodes", [3, 4, 7])
def test_a_join_moves_its_share_of_all_replicas_and_next_to_nothing_else(
    nodes: int, replicas: int
) -> None:
    """However slowly and in whatever order the blocks arrive."""
    for seed in range(4):
        cluster = settled(150, nodes, replicas, seed)
        cluster.add(ServerId("late/1"))
        for _ in range(10):
            cluster.catch_up(share=0.3)
            cluster.step()
        cluster.settle()
        share = cluster.copies * sum(cluster.sizes) / (nodes + 1)
        assert cluster.bytes_of(ServerId("late/1"), held=True) >= share - 8
        assert cluster.arrived_bytes <= share + 4 * 8


@pytest.mark.parametrize("replicas", [2, 3])
def test_a_death_is_one_step_that_promotes_the_living_and_spreads_what_they_lead(
    replicas: int,
) -> None:
    for seed in range(8):
        cluster = settled(60, 5, replicas, seed)
        dead = cluster.alive.pop(seed % 5)
        hit = {one.block for one in cluster.entries if dead in one.servers}
        cluster.rows = []
        planned = cluster.step()
        assert hit <= {after.block for after in planned.changed}
        assert not any(dead in one.servers for one in cluster.entries)
        assert planned.orphaned == ()
        refilled = [one for one in cluster.entries if one.block in hit and one.learners]
        assert len(refilled) >= min(len(hit), 4 * MOVES_IN_FLIGHT // 2)
        share = sum(cluster.sizes) / 4
        for server in cluster.alive:
            assert cluster.bytes_of(server, held=False) < share + 3 * 8
        cluster.settle()


def test_a_block_with_one_copy_left_is_copied_before_the_others_move() -> None:
    cluster = settled(200, 3, 2)
    cluster.add(ServerId("late/1"))
    cluster.alive.pop(0)
    cluster.rows = []
    cluster.step()
    alone = {one.block for one in cluster.entries if len(one.holders) == 1}
    filled = [one for one in cluster.entries if one.learners]
    assert len(alone) > len(filled) >= MOVES_IN_FLIGHT
    assert all(one.block in alone for one in filled)


@pytest.mark.parametrize("replicas", [2, 3])
def test_a_drain_takes_leads_and_backups_off_while_every_copy_stays(replicas: int) -> None:
    for seed in range(8):
        cluster = settled(60, 5, replicas, seed)
        leaver = cluster.alive[seed % 5]
        leaving = cluster.bytes_of(leaver, held=True)
        cluster.drained.add(leaver)
        while any(leaver in one.servers for one in cluster.entries):
            cluster.catch_up(share=0.5)
            cluster.step()
            assert all(len(one.holders) >= replicas for one in cluster.entries)
        cluster.settle()
        assert cluster.arrived_bytes <= leaving + 4 * 8


def test_primaries_and_replicas_follow_the_weights() -> None:
    cluster = Cluster(120, 2, Random(1))
    for number, weight in enumerate([1.0, 1.0, 2.0, 2.0, 4.0]):
        cluster.add(ServerId(f"n{number}/1"), weight=weight)
    cluster.begin()
    cluster.settle()
    heavy, light = ServerId("n3/1"), ServerId("n0/1")
    assert abs(cluster.bytes_of(heavy, held=True) - 2 * cluster.bytes_of(light, held=True)) < 32


def test_replicas_of_a_block_part_into_zones_through_joins_and_deaths() -> None:
    for seed in range(6):
        cluster = settled(40, 6, 2, seed, zones=3)
        cluster.add(ServerId("late/1"), zone="z1")
        cluster.settle()
        cluster.alive.pop(seed % 6)
        cluster.settle()
        for one in cluster.entries:
            assert len({cluster.zones[server] for server in one.holders}) == 2


def test_more_replicas_than_nodes_are_as_many_as_nodes_and_grow_with_them() -> None:
    cluster = settled(20, 1, 3)
    assert {len(one.holders) for one in cluster.entries} == {1}
    for nodes in (2, 3, 4):
        cluster.add(ServerId(f"late{nodes}/1"))
        cluster.settle()
        assert {len(one.holders) for one in cluster.entries} == {min(3, nodes)}


class Walk:
    """Servers join, drain and die while learners catch up or do not, drawn from a seed."""

    def __init__(self, seed: int) -> None:
        random = self.random = Random(seed)
        self.cluster = Cluster(random.randint(1, 24), random.randint(1, 3), random)
        for _ in range(random.randint(1, 4)):
            self.join()
        self.cluster.begin()

    def run(self, steps: int) -> None:
        for _ in range(steps):
            act = self.random.choice(
                [self.join, self.drain, self.undrain, self.die, *[self.go_on] * 6]
            )
            act()
        self.go_on()
        self.cluster.settle()

    def join(self) -> None:
        if len(self.cluster.alive) < 6:
            self.cluster.revision += 1
            number = self.cluster.revision
            self.cluster.add(ServerId(f"n{number}/{number}"))

    def drain(self) -> None:
        self.cluster.drained.add(self.random.choice(self.cluster.alive))

    def undrain(self) -> None:
        self.cluster.drained.clear()

    def die(self) -> None:
        server = self.random.choice(self.cluster.alive)
        others = set(self.cluster.alive) - {server}
        if all(set(one.holders) & others for one in self.cluster.entries):
            self.cluster.alive.remove(server)

    def go_on(self) -> None:
        self.cluster.catch_up(share=self.random.choice([0.0, 0.3, 1.0]))
        self.cluster.step()


@pytest.mark.parametrize("block", range(4))
def test_a_plan_settles_without_ever_losing_a_whole_replica(block: int) -> None:
    for seed in range(25 * block, 25 * (block + 1)):
        try:
            Walk(seed).run(steps=25)
        except AssertionError as error:
            error.add_note(f"seed {seed}")
            raise
