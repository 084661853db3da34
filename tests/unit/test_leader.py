"""What a leader writes next, decided from what it sees alone."""

from __future__ import annotations

from typing import Any

import pytest

from elasticps.core.ids import BlockId, JobKey, ServerId, node_of
from elasticps.core.past_lives import KEPT
from elasticps.core.plan import PART_BLOCKS
from elasticps.core.proposal import Placed
from elasticps.core.records import JobState, ScaleRecord, ServerEnd, WorkerState
from elasticps.daemon.leader import PARTS_A_WRITE, Now, Orphans, Write, decide
from elasticps.daemon.view import JobView
from elasticps.store import Delete
from tests.support.contents import BLOCK_BYTES, Contents

LOST_AFTER_S = 30.0
ONE_COPY = "1 copy of each block: a node that dies takes the job with it"
GARBAGE = b"\x00"


class Led(Contents):
    """An etcd with a leader, whose clocks the tests set."""

    def __init__(self) -> None:
        super().__init__()
        self.orphans = Orphans(LOST_AFTER_S)
        self.placed: dict[JobKey, Placed] = {}
        self.unix = 1_000_000.0
        self.monotonic = 100.0

    def decided(self) -> list[Write]:
        now = Now(unix=self.unix, monotonic=self.monotonic)
        return decide(self.view, now, self.orphans, self.placed)

    def settle(self) -> list[str]:
        """Let the leader write until it has nothing to write; the reasons it gave."""
        told = []
        for _ in range(100):
            writes = self.decided()
            if not writes:
                return told
            for write in writes:
                self.write(write)
                told.append(write.why)
        raise AssertionError(f"it never comes to rest: {told}")

    def catch_up(self, job: JobView) -> None:
        """Every learner has been filled, as its primary's node reports."""
        by_node: dict[str, dict[str, list]] = {}
        for entry in job.entries:
            for learner in entry.learners:
                report = by_node.setdefault(node_of(entry.primary), {})
                report.setdefault(learner, []).append(entry)
        for node, report in by_node.items():
            self.promised(job, node, report)

    def move_all(self, job: JobView) -> None:
        """Settle and catch up until no learner is left."""
        self.settle()
        while any(entry.learners for entry in job.entries):
            self.catch_up(job)
            self.settle()


@pytest.fixture
def etcd() -> Led:
    return Led()


def running(etcd: Led, nodes: str, blocks: int, **fields: Any) -> JobView:
    """A job of so many blocks and the ledger that runs on these nodes, a worker on each."""
    for node in nodes:
        etcd.node(node)
    job = etcd.job(**fields)
    etcd.settle()
    for node in nodes:
        etcd.worker(job, f"{node}.1")
    etcd.described(job, blocks)
    etcd.settle()
    return job


@pytest.fixture
def job(etcd: Led) -> JobView:
    """A job of seven blocks and the ledger, one copy of each, that runs on the nodes a and b."""
    return running(etcd, "ab", 7, replicas=1)


@pytest.fixture
def paired(etcd: Led) -> JobView:
    """A job of 23 blocks and the ledger on the nodes a, b and c, two copies of each in sync."""
    job = running(etcd, "abc", 23)
    etcd.move_all(job)
    return job


def leads(job: JobView) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in job.entries:
        counts[entry.primary] = counts.get(entry.primary, 0) + 1
    return counts


def test_nothing_is_written_where_nothing_is_to_do(etcd: Led, job: JobView) -> None:
    etcd.unix += 1000
    etcd.monotonic += 1000
    assert etcd.decided() == []


def test_new_job_waits_for_its_workers_then_runs(etcd: Led) -> None:
    etcd.node("a", worker_slots=2)
    job = etcd.job(start_workers=2)

    (write,) = etcd.decided()
    assert [(compare.key, compare.revision) for compare in write.compares] == [
        (etcd.keys.job_spec("job"), job.key),
        (etcd.keys.job_status("job"), 0),
    ]
    etcd.settle()
    assert job.status is not None
    assert (job.status.state, job.status.reason) == (
        JobState.PENDING,
        "waiting for workers: 0 of 2 started",
    )
    assert job.status.workers == {"a": 2}

    etcd.worker(job, "a.1")
    etcd.worker(job, "a.2")
    etcd.settle()
    assert job.status.state is JobState.RUNNING
    waits = "waiting for a script to come to run.optimizer()"
    assert job.status.reason == f"2 workers; {waits}"

    etcd.described(job, 3)
    etcd.settle()
    assert waits not in job.status.reason


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


def test_first_worker_that_failed_fails_the_job_and_everything_else_of_it_goes(
    etcd: Led, job: JobView
) -> None:
    etcd.worker(job, "b.1", state=WorkerState.FAILED, reason="boom", traceback="Traceback")

    etcd.settle()

    assert job.status is not None
    assert job.status.state is JobState.FAILED
    assert job.status.failure is not None
    assert (job.status.failure.node, job.status.failure.worker) == ("b", "b.1")
    assert sorted(
        key.removeprefix(etcd.keys.job("job")) for key in etcd.items if "jobs" in key
    ) == [
        "model",
        "spec",
        "status",
    ]
    assert etcd.decided() == []


def test_cancelled_job_ends(etcd: Led, job: JobView) -> None:
    etcd.put(etcd.keys.job_cancel("job"), b"{}")
    etcd.settle()
    assert job.status is not None
    assert job.status.state is JobState.CANCELLED
    assert job.status.workers == {}


def test_a_scale_is_heeded_by_the_next_leader_too_and_goes_with_the_job(
    etcd: Led, job: JobView
) -> None:
    key = etcd.keys.job_scale(job.name)
    etcd.put(key, ScaleRecord(workers=1, ranks=(job.workers["b.1"].worker,)))
    etcd.settle()
    assert job.status is not None
    assert (job.status.asked, job.status.workers) == (1, {"b": 1})
    assert reason(job).startswith("2 workers, 1 to leave: scaled to 1; ")

    again = etcd.list_again().jobs[job.name]
    assert again.scale == ScaleRecord(workers=1, ranks=(job.workers["b.1"].worker,))
    etcd.put(key, b"another's")
    etcd.settle()
    assert (job.status.asked, job.status.workers) == (None, {"a": 1, "b": 1})

    etcd.put(key, ScaleRecord(workers=1))
    etcd.put(etcd.keys.job_cancel(job.name), b"{}")
    etcd.settle()
    assert key not in etcd.items


def test_of_workers_that_broke_off_the_newest_are_kept_and_all_are_counted(
    etcd: Led, job: JobView
) -> None:
    for number in range(2, KEPT + 12):
        record = {"state": WorkerState.KILLED, "pushed_bytes": 10, "gradient_bytes": 20}
        etcd.worker(job, f"a.{number}", **record)
        if number == 3:
            etcd.settle()
    (write,) = etcd.decided()
    gone = {operation.key for operation in write.operations if isinstance(operation, Delete)}
    assert gone == {etcd.keys.worker("job", f"a.{number}") for number in range(2, 12)}
    assert gone < {compare.key for compare in write.compares}
    etcd.write(write)
    assert etcd.settle() == []
    assert len(job.workers) == KEPT + 2
    assert job.status is not None
    assert job.status.past.lives == 10
    assert (job.status.pushed_bytes, job.status.past.pushed_bytes) == (10 * (KEPT + 10), 100)
    again = etcd.list_again().jobs[job.name]
    assert again.status == job.status

    etcd.worker(job, "b.1", state=WorkerState.FAILED)
    etcd.settle()
    assert (job.status.state, job.workers) == (JobState.FAILED, {})
    assert job.status.pushed_bytes == 10 * (KEPT + 10)


def test_a_reason_has_a_since_that_stands_until_it_is_another(etcd: Led, job: JobView) -> None:
    assert job.status is not None
    began = job.status.since_unix
    assert began == etcd.unix
    etcd.unix += 50
    etcd.settle()
    assert job.status.since_unix == began
    etcd.gone("b")
    etcd.settle()
    assert job.status.since_unix == began + 50


def test_damaged_plan_is_not_made_anew_and_the_job_can_still_end(etcd: Led, job: JobView) -> None:
    good = etcd.items[etcd.keys.plan_part("job", 0)].value
    etcd.put(etcd.keys.plan_part("job", 0), GARBAGE)
    etcd.node("c")
    etcd.settle()
    assert job.status is not None
    assert job.status.reason == "its plan in etcd cannot be read: its blocks stay put"
    assert etcd.items[etcd.keys.plan_part("job", 0)].value == GARBAGE

    etcd.put(etcd.keys.plan_part("job", 0), good)
    etcd.move_all(job)
    assert leads(job)["c/1"] == 2

    etcd.put(etcd.keys.plan_part("job", 0), GARBAGE)
    for uid in ("a.1", "b.1"):
        etcd.worker(job, uid, state=WorkerState.SUCCEEDED)
    etcd.settle()
    assert job.status.state is JobState.SUCCEEDED


def test_deleted_plan_is_not_made_anew(etcd: Led, job: JobView) -> None:
    good = etcd.items[etcd.keys.plan_part("job", 0)].value
    etcd.delete(etcd.keys.plan_part("job", 0))
    etcd.settle()
    assert job.entries == []
    assert job.status is not None
    assert job.status.reason == "its plan in etcd cannot be read: its blocks stay put"

    etcd.put(etcd.keys.plan_part("job", 0), good)
    etcd.settle()
    assert leads(job) == {"a/1": 4, "b/1": 4}
    assert job.status.reason == f"2 workers; {ONE_COPY}"


def test_damaged_status_is_left_alone_and_other_jobs_are_not(etcd: Led, job: JobView) -> None:
    etcd.put(etcd.keys.job_status("job"), GARBAGE)
    etcd.worker(job, "a.1", state=WorkerState.FAILED)
    assert etcd.decided() == []

    other = etcd.job("other")
    etcd.settle()
    assert other.status is not None
    assert other.status.state is JobState.PENDING
    assert etcd.items[etcd.keys.job_status("job")].value == GARBAGE


def test_write_is_refused_by_etcd_when_the_view_was_old(etcd: Led, job: JobView) -> None:
    etcd.node("c")
    (write,) = etcd.decided()
    etcd.settle()
    compared = {compare.key: compare.revision for compare in write.compares}
    assert compared.pop(etcd.keys.job_spec("job")) == job.key
    current = {key: etcd.items[key].mod_revision for key in compared}
    assert set(compared) == {etcd.keys.plan_part("job", 0), etcd.keys.job_status("job")}
    assert all(compared[key] < current[key] for key in compared)


def test_write_of_a_job_is_none_of_a_later_one_of_its_name(etcd: Led) -> None:
    etcd.node("a")
    etcd.job()
    (first,) = etcd.decided()  # its answer is lost, and it comes late
    etcd.delete(etcd.keys.job_spec("job"))
    etcd.job()
    assert not all(map(etcd.holds, first.compares))
    assert all(map(etcd.holds, etcd.decided()[0].compares))


# -- two copies of each block ---------------------------------------------------------------------


def reason(job: JobView) -> str:
    assert job.status is not None
    return job.status.reason


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


# -- wishes -------------------------------------------------------------------------------------


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


# -- placements of jobs' own --------------------------------------------------------------------


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
