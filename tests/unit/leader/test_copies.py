"""The plan of a job with two copies of each block, and of one with wishes or a placement."""

from __future__ import annotations

import pytest

from elasticps.core.ids import BlockId, node_of
from elasticps.core.proposal import Placed
from elasticps.core.records import JobState
from elasticps.daemon.view import JobView
from tests.support.contents import BLOCK_BYTES
from tests.unit.leader.led import LOST_AFTER_S, Led, leads, reason, running


def test_copies_are_filled_and_their_lack_is_told_until_then(etcd: Led) -> None:
    job = running(etcd, "abc", 23)
    assert reason(job) == (
        "3 workers; 24 of 24 blocks have fewer than 2 copies; copies are made as nodes have room"
    )
    etcd.move_all(job)
    assert reason(job) == "3 workers"
    assert all(len(entry.holders) == 2 for entry in job.entries)
    assert job.status is not None
    movement = job.status.movement
    assert movement.blocks == 24
    assert movement.value_bytes == movement.least_value_bytes == 24 * BLOCK_BYTES


def test_a_lone_node_says_that_its_death_is_the_end(etcd: Led) -> None:
    job = running(etcd, "a", 3)
    assert reason(job) == (
        "1 worker; all blocks are on a alone: if it dies, the job is lost;"
        " 1 node lives: start a daemon on another machine"
    )


@pytest.mark.parametrize("restarts", [False, True])
def test_a_dead_nodes_blocks_fail_over_in_one_write_without_waiting(
    etcd: Led, paired: JobView, restarts: bool
) -> None:
    assert leads(paired) == {"a/1": 8, "b/1": 8, "c/1": 8}
    before = {entry.block: entry for entry in paired.entries}
    if restarts:
        etcd.node("b", "2")
    else:
        etcd.gone("b")

    (write,) = etcd.decided()
    etcd.write(write)

    assert leads(paired) == {"a/1": 12, "c/1": 12}
    for entry in paired.entries:
        was = before[entry.block]
        assert "b/1" not in entry.servers
        if "b/1" in was.holders:
            assert entry.epoch > was.epoch
            assert entry.primary in was.holders
            assert len(entry.learners) == 1
    assert reason(paired).startswith("3 workers; 16 of 24 blocks have fewer than 2 copies")
    etcd.move_all(paired)
    assert reason(paired) == "3 workers"
    assert paired.status is not None
    movement = paired.status.movement
    assert movement.value_bytes <= movement.least_value_bytes + 2 * BLOCK_BYTES


def test_a_node_that_joins_is_filled_with_hardly_more_than_its_share(
    etcd: Led, paired: JobView
) -> None:
    assert paired.status is not None
    before = paired.status.movement
    etcd.node("d")
    etcd.move_all(paired)
    after = paired.status.movement
    least = after.least_value_bytes - before.least_value_bytes
    assert least == 2 * 24 * BLOCK_BYTES // 4
    assert least - BLOCK_BYTES < after.value_bytes - before.value_bytes <= least + 2 * BLOCK_BYTES


def test_a_drain_takes_leads_and_copies_away(etcd: Led, paired: JobView) -> None:
    etcd.drain("b")
    etcd.move_all(paired)
    assert all(set(entry.servers) == {"a/1", "c/1"} for entry in paired.entries)
    assert leads(paired) == {"a/1": 12, "c/1": 12}


def test_blocks_are_lost_when_every_holder_is_gone_for_good(etcd: Led, paired: JobView) -> None:
    both = sum(set(entry.holders) == {"a/1", "b/1"} for entry in paired.entries)
    assert both
    etcd.gone("a")
    etcd.gone("b")
    etcd.settle()
    assert reason(paired) == (
        f"waiting for a, b to return: they hold the only replicas of {both} blocks;"
        " after 30 s the job fails"
    )

    etcd.node("a", None)  # b may still have them
    etcd.settle()
    assert paired.status is not None
    assert paired.status.state is JobState.RUNNING
    assert reason(paired) == (
        f"waiting for b to return: it holds the only replica of {both} blocks;"
        " after 30 s the job fails"
    )

    etcd.node("b", "2")
    etcd.settle()
    assert paired.status.state is JobState.FAILED
    assert reason(paired) == (
        f"{both} blocks are lost: the shard servers of a, b died, and no other replica was in sync"
    )


def test_one_holder_that_returns_with_its_server_saves_the_job(etcd: Led, paired: JobView) -> None:
    etcd.gone("a")
    etcd.gone("b")
    etcd.settle()
    etcd.monotonic += LOST_AFTER_S - 1
    etcd.node("b")
    etcd.move_all(paired)
    assert reason(paired) == "3 workers"
    assert all(set(entry.holders) == {"b/1", "c/1"} for entry in paired.entries)


def test_first_primary_that_dies_before_its_copies_are_whole_is_not_made_anew(etcd: Led) -> None:
    """Nobody can prove that it had acknowledged nothing."""
    job = running(etcd, "ab", 7, checkpoint_dir="/saved")
    assert all(entry.fresh and entry.learners for entry in job.entries)
    etcd.node("b", "2")
    etcd.settle()
    assert job.status is not None
    assert job.status.state is JobState.FAILED
    assert "4 blocks are lost" in reason(job)
    assert reason(job).endswith(
        "; resume from the last checkpoint: elasticps submit --resume /saved train.py,"
        " or with run in place of submit"
    )


def test_too_few_copies_for_min_insync_are_told_as_what_the_job_waits_for(etcd: Led) -> None:
    job = running(etcd, "abc", 23, min_insync=2)
    etcd.move_all(job)
    assert reason(job) == "3 workers"
    etcd.gone("b")
    etcd.settle()
    assert "waiting until 16 blocks have 2 copies (min-insync)" in reason(job)
    etcd.move_all(job)
    assert reason(job) == "3 workers"


def test_blocks_are_led_where_workers_wish_while_their_node_lives(etcd: Led) -> None:
    job = running(etcd, "abc", 23)
    etcd.move_all(job)
    stages = {"a": (1, 12), "b": (12, 20), "c": (20, 24)}
    for node, span in stages.items():
        etcd.preferred(job, node, span)
    etcd.move_all(job)
    for node, (first, stop) in stages.items():
        assert {node_of(entry.primary) for entry in job.entries[first:stop]} == {node}
    assert etcd.decided() == []

    etcd.gone("a")
    etcd.move_all(job)
    assert all(len(entry.holders) == 2 for entry in job.entries)
    assert {node_of(entry.primary) for entry in job.entries} == {"b", "c"}
    assert etcd.decided() == []


def test_a_proposal_is_planned_and_balanced_does_not_undo_it(etcd: Led) -> None:
    job = running(etcd, "ab", 7, replicas=1, placement="acme")
    a, b = (record.servers[0].server for record in etcd.view.nodes.values())
    assert leads(job) == {a: 4, b: 4}
    etcd.placed[job.key] = Placed(proposal={BlockId(block): (b,) for block in range(8)})
    etcd.move_all(job)
    assert leads(job) == {b: 8}
    etcd.placed.clear()  # another leader, which has not asked yet
    assert etcd.decided() == []


def test_a_refusal_is_told_once_and_the_blocks_are_balanced(etcd: Led) -> None:
    job = running(etcd, "ab", 7, replicas=1, placement="acme:x=1")
    (_, b) = (record.servers[0].server for record in etcd.view.nodes.values())
    etcd.placed[job.key] = Placed(proposal={BlockId(block): (b,) for block in range(8)})
    etcd.move_all(job)

    etcd.placed[job.key] = Placed(refusal="RuntimeError: no idea")
    etcd.move_all(job)

    assert sorted(leads(job).values()) == [4, 4]
    told = "placement acme is not heard, balanced is used meanwhile: RuntimeError: no idea"
    assert job.status is not None
    assert told in job.status.reason
    assert etcd.decided() == []
    etcd.placed[job.key] = Placed()
    etcd.settle()
    assert "acme" not in job.status.reason


def test_a_failover_does_not_wait_for_a_placement(etcd: Led) -> None:
    job = running(etcd, "abc", 23, placement="acme")
    etcd.move_all(job)
    gone = etcd.view.nodes["a"].servers[0].server
    etcd.gone("a")
    etcd.move_all(job)
    assert all(gone not in entry.servers for entry in job.entries)
    assert all(len(entry.holders) == 2 for entry in job.entries)
