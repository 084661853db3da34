"""Failovers read off the cluster's view: what was lost, why, and when all was as before."""

from __future__ import annotations

import pytest

from elasticps.core.ids import NodeId, ServerId
from elasticps.core.plan import Entry, encode_part
from elasticps.core.records import DrainRecord, JobState, JobStatus
from elasticps.daemon.metrics.failovers import MOST_OPEN, Cause, Failovers, Healed, Promoted
from elasticps.daemon.metrics.measured import Measured
from elasticps.daemon.view import JobView
from tests.support.contents import Contents

A, B, C = (ServerId(f"{node}/1") for node in "abc")
NODE_A = NodeId("a")


class World(Contents):
    """Nodes a, b and c, and a job of three blocks that a, b and c lead; each has a backup."""

    def __init__(self) -> None:
        super().__init__()
        self.failovers = Failovers()
        self.now_s = 100.0
        for node in "abc":
            self.node(node)
        self.running: JobView = self.job()
        self.plan((A, B), (B, C), (C, A))
        self.put(self.keys.leader, b"b")

    def plan(self, *holders: tuple[ServerId, ...]) -> None:
        entries = [
            Entry(block=block, primary=primary, in_sync=tuple(others))  # type: ignore[arg-type]
            for block, (primary, *others) in enumerate(holders)
        ]
        self.put(self.keys.plan_part(self.running.name, 0), encode_part(entries))

    def look(self, after_s: float = 0.0) -> list[Promoted | Healed]:
        self.now_s += after_s
        return self.failovers.look(self.view, self.now_s)

    def broke(self, *, refused: bool) -> None:
        self.failovers.signs.broke(NODE_A, "0", self.now_s)
        if refused:
            self.failovers.signs.refused(NODE_A, "0")


@pytest.fixture
def world() -> World:
    world = World()
    assert world.look() == []
    return world


def test_a_failover_is_promoted_when_others_lead_and_healed_when_all_copies_are_back(
    world: World,
) -> None:
    world.broke(refused=True)
    world.now_s += 0.25
    world.gone("a")
    assert world.look() == []
    world.plan((B,), (B, C), (C,))
    (promoted,) = world.look(0.5)
    assert isinstance(promoted, Promoted)
    assert (promoted.cause, promoted.after_s, promoted.detected_s) == (Cause.NODE_DIED, 0.5, 0.25)
    world.plan((B, C), (B, C), (C,))
    assert world.look(1.0) == []
    world.plan((B, C), (B, C), (C, B))
    (healed,) = world.look(2.0)
    assert isinstance(healed, Healed)
    assert (healed.cause, healed.after_s) == (Cause.NODE_DIED, 3.5)
    world.plan((C, B), (B, C), (C, B))
    assert world.look(1.0) == []


@pytest.mark.parametrize(
    ("story", "cause"),
    [
        ("server", Cause.SERVER_DIED),
        ("silent", Cause.LEASE_EXPIRED),
        ("cut off", Cause.LEASE_EXPIRED),
        ("refused", Cause.NODE_DIED),
        ("refused long before etcd heard", Cause.NODE_DIED),
        ("another daemon was quicker", Cause.NODE_DIED),
        ("drained in vain", Cause.LEFT),
        ("killed while it drained", Cause.NODE_DIED),
    ],
)
def test_the_cause_is_what_the_leader_saw(world: World, story: str, cause: Cause) -> None:
    if "drain" in story:
        world.put(world.keys.drain("a"), DrainRecord())
    if story in ("cut off", "refused", "refused long before etcd heard", "killed while it drained"):
        world.broke(refused=story != "cut off")
        world.now_s += 5.0 if story != "refused" else 0.1
    if story == "server":
        world.node("a", None)
    else:
        world.gone("a")
    assert world.look() == []
    if story == "another daemon was quicker":
        world.broke(refused=False)
    world.plan((B,), (B, C), (C,))
    (promoted,) = world.look(0.5)
    assert isinstance(promoted, Promoted)
    assert promoted.cause is cause
    seen = cause is Cause.NODE_DIED or story == "cut off"
    assert (promoted.detected_s is not None) == seen


def test_a_copy_too_many_while_a_block_moves_need_not_come_back(world: World) -> None:
    world.plan((A, B, C), (B, C), (C, A))
    world.look()
    world.gone("a")
    world.look()
    world.plan((B, C), (B, C), (C, B))
    promoted, healed = world.look(0.5)
    assert isinstance(promoted, Promoted)
    assert isinstance(healed, Healed)


def test_a_node_that_is_drained_empty_is_no_failover(world: World) -> None:
    world.plan((B, C), (B, C), (C, B))
    world.look()
    world.gone("a")
    assert world.look(1.0) == []
    world.plan((C, B), (B, C), (C, B))
    assert world.look(1.0) == []


def test_a_server_that_comes_back_before_others_led_is_no_failover(world: World) -> None:
    world.gone("a")
    world.look()
    world.node("a")
    assert world.look(1.0) == []
    world.plan((B, A), (B, C), (C, A))
    assert world.look(1.0) == []


def test_a_job_that_ends_with_its_blocks_is_no_failover(world: World) -> None:
    world.gone("a")
    world.look()
    ended = JobStatus(state=JobState.FAILED, reason="1 block is lost")
    world.put(world.keys.job_status(world.running.name), ended)
    assert world.look(1.0) == []
    assert world.failovers._open == []


def test_two_losses_at_a_time_are_two_failovers(world: World) -> None:
    world.plan((A, B, C), (B, C, A), (C, A, B))
    world.look()
    world.gone("a")
    world.gone("b")
    world.look()
    world.plan((C,), (C,), (C,))
    assert [type(event) for event in world.look(1.0)] == [Promoted, Promoted]
    world.node("a", "2")
    world.node("b", "2")
    again = (ServerId("a/2"), ServerId("b/2"))
    world.plan((C, *again), (C, *again), (C, *again))
    assert [type(event) for event in world.look(1.0)] == [Healed, Healed]


def test_losses_that_never_heal_do_not_pile_up(world: World) -> None:
    holders = [ServerId(f"m{number}/1") for number in range(MOST_OPEN + 5)]
    for holder in holders:
        world.node(holder.removesuffix("/1"))
    world.look()
    for holder in holders:
        world.gone(holder.removesuffix("/1"))
        world.plan((holder, B))
        assert world.look() == []
        world.plan((B,))
        (promoted,) = world.look()
        assert isinstance(promoted, Promoted)
    assert len(world.failovers._open) == MOST_OPEN


def test_only_who_leads_counts() -> None:
    world = World()
    everyone = [Measured(NodeId(node)) for node in "abc"]
    for measured in everyone:
        measured.view_changed(world.view)
    world.gone("a")
    for measured in everyone:
        measured.view_changed(world.view)
    world.plan((B, C), (B, C), (C, B))
    for measured in everyone:
        measured.view_changed(world.view)
    counted = [measured.failovers_by_cause[Cause.LEASE_EXPIRED] for measured in everyone]
    assert counted == [0, 1, 0]
    assert [measured.heal[Cause.LEASE_EXPIRED].count for measured in everyone] == [0, 1, 0]
