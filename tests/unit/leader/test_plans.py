"""The plan that a leader writes, decided from what it sees alone: one copy of each block."""

from __future__ import annotations

import pytest

from elasticps.core.ids import ServerId, node_of
from elasticps.core.plan import PART_BLOCKS
from elasticps.core.records import JobState, ServerEnd, WorkerState
from elasticps.daemon.leader import PARTS_A_WRITE, Orphans
from elasticps.daemon.view import JobView
from tests.support.contents import BLOCK_BYTES
from tests.unit.leader.led import LOST_AFTER_S, ONE_COPY, Led, leads


def test_nothing_is_written_where_nothing_is_to_do(etcd: Led, job: JobView) -> None:
    etcd.unix += 1000
    etcd.monotonic += 1000
    assert etcd.decided() == []


def test_first_plan_is_fair_and_written_with_the_status_as_one_step(etcd: Led) -> None:
    servers = {etcd.node("a"), etcd.node("b")}
    job = etcd.job(replicas=1)
    etcd.settle()
    etcd.worker(job, "a.1")
    etcd.described(job, 7)

    (write,) = etcd.decided()

    assert [operation.key for operation in write.operations] == [
        etcd.keys.plan_part("job", 0),
        etcd.keys.job_status("job"),
    ]
    etcd.settle()
    assert leads(job) == dict.fromkeys(servers, 4)
    assert all(entry.fresh and entry.epoch > 0 for entry in job.entries)
    assert job.status is not None
    assert job.status.movement.blocks == 0


def test_first_plan_waits_for_a_node(etcd: Led) -> None:
    job = etcd.job()
    etcd.described(job, 1)
    etcd.settle()
    assert job.entries == []
    etcd.node("a", None)
    etcd.settle()
    assert job.entries == []
    etcd.node("a", "1")
    etcd.settle()
    assert leads(job) == {"a/1": 2}


def test_plan_of_many_parts_is_written_a_few_at_a_time(etcd: Led) -> None:
    etcd.node("a")
    job = etcd.job(replicas=1)
    parts = PARTS_A_WRITE + 1
    etcd.described(job, parts * PART_BLOCKS - 1)

    (first,) = etcd.decided()
    etcd.write(first)
    assert sorted(job.parts) == list(range(PARTS_A_WRITE))
    etcd.settle()
    assert sorted(job.parts) == list(range(parts))
    assert [entry.block for entry in job.entries] == list(range(parts * PART_BLOCKS))


def test_blocks_go_to_a_node_that_joins_by_way_of_learners(etcd: Led, job: JobView) -> None:
    before = {entry.block: entry for entry in job.entries}
    etcd.node("c")
    etcd.settle()
    moving = [entry for entry in job.entries if entry.learners]
    assert [entry.learners for entry in moving] == [("c/1",)] * len(moving)
    assert [entry.primary for entry in moving] == [before[e.block].primary for e in moving]
    assert leads(job) == {"a/1": 4, "b/1": 4}

    etcd.catch_up(job)
    etcd.settle()

    assert leads(job)["c/1"] == len(moving) == 2
    moved = [entry for entry in job.entries if entry.primary == "c/1"]
    assert all(entry.epoch > before[entry.block].epoch and not entry.fresh for entry in moved)
    kept = [entry for entry in job.entries if entry.primary != "c/1"]
    assert kept == [before[entry.block] for entry in kept]
    assert job.status is not None
    movement = job.status.movement
    assert (movement.blocks, movement.value_bytes) == (2, 2 * BLOCK_BYTES)
    assert movement.snapshot_bytes == 2 * 2 * BLOCK_BYTES
    assert 2 * BLOCK_BYTES <= movement.least_value_bytes <= 3 * BLOCK_BYTES
    assert job.status.workers == {"a": 1, "b": 1, "c": 1}


def test_promise_of_an_older_epoch_moves_nothing(etcd: Led, job: JobView) -> None:
    etcd.node("c")
    etcd.settle()
    old = [entry for entry in job.entries if entry.learners]
    etcd.gone("c")
    etcd.settle()
    assert not any(entry.learners for entry in job.entries)
    etcd.node("c")
    etcd.settle()

    for entry in old:
        etcd.promised(job, node_of(entry.primary), {"c/1": [entry]})
    etcd.settle()

    assert "c/1" not in leads(job)


def test_draining_node_serves_until_its_blocks_are_elsewhere(etcd: Led, job: JobView) -> None:
    etcd.drain("b")
    etcd.settle()
    assert leads(job) == {"a/1": 4, "b/1": 4}
    assert job.status is not None
    assert job.status.workers == {"a": 1}

    etcd.move_all(job)

    assert leads(job) == {"a/1": 8}
    assert not etcd.view.holds_nothing("b")  # its worker
    etcd.worker(job, "b.1", state=WorkerState.LEFT)
    assert etcd.view.holds_nothing("b")
    assert etcd.settle() != []
    assert job.status.reason == f"1 worker; {ONE_COPY}"


def test_only_node_that_drains_keeps_its_blocks_and_the_job_waits(etcd: Led, job: JobView) -> None:
    etcd.drain("a")
    etcd.drain("b")
    etcd.settle()
    assert leads(job) == {"a/1": 4, "b/1": 4}
    assert job.status is not None
    assert job.status.state is JobState.PENDING
    assert job.status.reason.startswith("waiting for a node that may run workers: ")


def test_blocks_of_a_lost_node_are_waited_for_and_then_given_up(etcd: Led, job: JobView) -> None:
    etcd.gone("b")
    etcd.settle()
    assert job.status is not None
    assert job.status.reason == (
        "waiting for b to return: it holds the only replica of 4 blocks; after 30 s the job fails"
    )
    etcd.unix += 1e9  # a wall clock that jumps is nobody's death
    etcd.monotonic += LOST_AFTER_S
    etcd.settle()
    assert job.status.state is JobState.RUNNING

    etcd.monotonic += 0.1
    etcd.settle()
    assert job.status.state is JobState.FAILED
    assert job.status.reason == (
        "4 blocks are lost: b did not return in 30 s, and no other replica was in sync"
    )
    assert job.status.ended_unix == etcd.unix
    assert job.parts == {}


def test_node_that_returns_with_its_server_goes_on_where_it_was(etcd: Led, job: JobView) -> None:
    before = job.entries
    etcd.gone("b")
    etcd.settle()
    etcd.monotonic += LOST_AFTER_S - 1
    etcd.node("b")
    etcd.settle()
    assert job.entries == before
    assert job.status is not None
    assert job.status.reason == f"2 workers; {ONE_COPY}"

    etcd.gone("b")  # the next absence is counted anew
    etcd.settle()
    etcd.monotonic += LOST_AFTER_S - 1
    assert etcd.settle() == []


def test_next_leadership_counts_an_absence_anew(etcd: Led, job: JobView) -> None:
    etcd.gone("b")
    etcd.settle()
    etcd.monotonic += 10 * LOST_AFTER_S
    etcd.orphans = Orphans(LOST_AFTER_S)
    etcd.settle()
    assert job.status is not None
    assert job.status.state is JobState.RUNNING


@pytest.mark.parametrize("seen", ["dead", "restarted", "returned with another"])
def test_blocks_are_lost_at_once_when_their_shard_server_is_known_to_be_dead(
    etcd: Led, job: JobView, seen: str
) -> None:
    if seen == "returned with another":
        etcd.gone("b")
        etcd.settle()
        assert job.status is not None
        assert job.status.state is JobState.RUNNING
    etcd.node("b", None if seen == "dead" else "2")
    etcd.settle()

    assert job.status is not None
    assert job.status.state is JobState.FAILED
    assert job.status.reason == (
        "4 blocks are lost: the shard server of b died, and no other replica was in sync"
    )


def test_blocks_that_are_lost_to_a_plugin_are_told_with_its_name(etcd: Led, job: JobView) -> None:
    within = "step() of optimizer odd on parameter p, block 1 of job job"
    mine = ServerEnd(server=ServerId("b/1"), within=within)
    earlier = ServerEnd(server=ServerId("b/0"), within="step() of another")
    etcd.node("b", None, server_ends=(earlier, mine))
    etcd.settle()

    assert job.status is not None
    assert job.status.reason == (
        f"4 blocks are lost: the shard server of b died in {within}, and no other replica was"
        " in sync"
    )
