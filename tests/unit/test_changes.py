"""What the timeline tells of two moments of the cluster."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elasticps.core.ids import BlockId, NodeId, PlanEpoch, ServerId
from elasticps.core.plan import PART_BLOCKS, Entry, encode_part, parts
from elasticps.core.records import (
    DrainRecord,
    JobState,
    JobStatus,
    MainNote,
    NodeRecord,
    ReportRecord,
    WorkerRecord,
    WorkerState,
)
from elasticps.daemon.changes import NOBODY, Change, FoundDead, Kind, changes
from elasticps.daemon.picture import Picture, take
from elasticps.daemon.view import JobView
from tests.support.contents import Contents
from tests.support.properties import REPRODUCIBLE

A, B, C, D = (ServerId(f"{name}/1") for name in "abcd")
RUNNING = JobStatus(state=JobState.RUNNING, reason="3 workers", started=True)


class Watched(Contents):
    """Contents, and what ``changes`` makes of them: ``happened`` since it was asked last."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = take(self.view)

    def happened(self, found_dead: FoundDead = NOBODY) -> list[Change]:
        before, self.picture = self.picture, take(self.view, self.picture)
        return changes(before, self.picture, found_dead)

    def told(self, found_dead: FoundDead = NOBODY) -> list[tuple[str, str]]:
        return [(change.kind.value, change.what) for change in self.happened(found_dead)]

    def plan(self, job: JobView, entries: Sequence[Entry]) -> None:
        for part, stored in parts(entries).items():
            self.put(self.keys.plan_part(job.name, part), encode_part(stored))


@pytest.fixture
def cluster() -> Watched:
    """a, b and c, of which a leads, and a job of 40 blocks that lie on a and b."""
    cluster = Watched()
    for name in "abc":
        cluster.node(name)
    cluster.put(cluster.keys.leader, b"a")
    job = cluster.job()
    cluster.put(cluster.keys.job_status("job"), RUNNING)
    cluster.described(job, 39)
    cluster.plan(job, entries(40, lambda block: (A, (B,)) if block % 2 else (B, (A,))))
    cluster.happened()
    return cluster


def entries(
    count: int, at: Callable[[int], tuple[ServerId, tuple[ServerId, ...]]], *, epoch: int = 5
) -> list[Entry]:
    homes = [at(block) for block in range(count)]
    return [
        Entry(block=BlockId(block), primary=lead, in_sync=others, epoch=PlanEpoch(epoch))
        for block, (lead, others) in enumerate(homes)
    ]


def test_node_that_joins_and_one_that_goes_are_told(cluster: Watched) -> None:
    cluster.node("d")
    cluster.gone("c")
    assert cluster.told() == [
        ("leave", "node c left; nothing was on it"),
        ("join", "node d joined: elasticps 0, http://d"),
    ]


def test_node_that_vanishes_with_blocks_is_an_error_and_says_what_was_on_it(
    cluster: Watched,
) -> None:
    cluster.worker(cluster.view.jobs["job"], "b.1")
    cluster.happened()
    cluster.gone("b")

    (change,) = cluster.happened()

    assert (change.kind, change.node, change.severity) == (Kind.LEAVE, "b", "error")
    assert (
        change.what == "node b left: killed, frozen or cut off; 40 replicas and 1 worker were on it"
    )


def test_cause_of_a_death_is_told_by_who_has_found_it_and_for_that_life_alone(
    cluster: Watched,
) -> None:
    found = {(NodeId("b"), "0"): "its connection broke", (NodeId("c"), "of before"): "long ago"}
    cluster.gone("b")
    cluster.gone("c")
    first, second = cluster.happened(found)
    assert first.what.startswith("node b left: killed: its connection broke; 40 replicas")
    assert second.what == "node c left; nothing was on it"


@pytest.mark.parametrize(
    ("restart", "what"),
    [(False, "node c left: drained"), (True, "node c left: drained, to be started again")],
)
def test_drain_is_told_from_its_begin_to_the_leaving(
    cluster: Watched, restart: bool, what: str
) -> None:
    cluster.put(cluster.keys.drain("c"), DrainRecord(restart=restart))
    then = "it restarts" if restart else "it leaves"
    assert cluster.told() == [("drain", f"node c is being drained; then {then}")]
    cluster.gone("c")
    cluster.delete(cluster.keys.drain("c"))  # seen in the same look
    assert cluster.told() == [("leave", what)]


def test_drained_node_is_told_to_be_empty_once(cluster: Watched) -> None:
    cluster.drain("b", stay=True)
    cluster.happened()
    job = cluster.view.jobs["job"]
    cluster.plan(job, entries(40, lambda _: (A, (C,))))
    assert ("drain", "node b is empty") in cluster.told()
    cluster.plan(job, entries(40, lambda _: (C, (A,))))
    assert [kind for kind, _ in cluster.told()] == ["move"]


def test_drain_that_is_taken_back_is_told(cluster: Watched) -> None:
    cluster.drain("c")
    cluster.happened()
    cluster.delete(cluster.keys.drain("c"))
    assert cluster.told() == [("drain", "the drain of node c is taken back")]


def test_restarted_daemon_left_and_joined(cluster: Watched) -> None:
    record = cluster.view.nodes[NodeId("c")]
    cluster.gone("c")
    cluster.put(cluster.keys.node("c"), _replaced(record, incarnation="1"))
    assert [kind for kind, _ in cluster.told()] == ["leave", "join"]


def test_restarted_shard_server_is_told_without_a_leave_of_its_node(cluster: Watched) -> None:
    record = cluster.view.nodes[NodeId("c")]
    cluster.put(cluster.keys.node("c"), _replaced(record, servers=()))
    assert cluster.told() == [("leave", "node c has lost its shard server c/1")]
    cluster.put(cluster.keys.node("c"), record)
    assert cluster.told() == [("join", "node c has a new shard server")]


def _replaced(record: NodeRecord, **fields: Any) -> NodeRecord:
    return msgspec.structs.replace(record, **fields)


def test_election_is_told(cluster: Watched) -> None:
    cluster.delete(cluster.keys.leader)
    assert cluster.told() == [("election", "nobody leads: node a did")]
    cluster.put(cluster.keys.leader, b"b")
    assert cluster.told() == [("election", "node b leads")]
    cluster.put(cluster.keys.leader, b"c")
    assert cluster.told() == [("election", "node c leads, after b")]


def test_failover_is_one_event_that_says_from_where_to_where(cluster: Watched) -> None:
    cluster.gone("b")
    cluster.happened()
    job = cluster.view.jobs["job"]
    cluster.plan(job, entries(40, lambda _: (A, ())))
    (change,) = cluster.happened()
    assert (change.kind, change.job, change.severity) == (Kind.FAILOVER, "job", "warning")
    assert change.what == "failover of 20 blocks of job: b -> a 20"


def test_rebalance_is_told_at_its_begin_and_with_all_that_moved_at_its_end(
    cluster: Watched,
) -> None:
    job = cluster.view.jobs["job"]
    learning = [
        Entry(
            block=entry.block,
            primary=entry.primary,
            in_sync=entry.in_sync,
            learners=(C,) if entry.block < 16 else (),
            epoch=PlanEpoch(6),
        )
        for entry in job.entries
    ]
    cluster.plan(job, learning)
    assert cluster.told() == [("rebalance", "rebalance of job begun: blocks are copied to c")]
    half = [
        Entry(block=entry.block, primary=C, in_sync=entry.in_sync, epoch=PlanEpoch(7))
        if entry.block < 8
        else entry
        for entry in learning
    ]
    cluster.plan(job, half)
    assert cluster.told() == []
    done = [
        Entry(block=entry.block, primary=C, in_sync=(A,), epoch=PlanEpoch(8))
        if entry.learners
        else entry
        for entry in half
    ]
    cluster.plan(job, done)
    ((kind, what),) = cluster.told()
    assert kind == "rebalance"
    assert what.startswith("rebalance of job done: 16 copies made (c 16; 0.1 MiB)")
    assert what.endswith("16 blocks led elsewhere")


def test_job_is_told_from_its_submission_to_its_end(cluster: Watched) -> None:
    job = cluster.job("next")
    cluster.put(
        cluster.keys.job_status("next"), JobStatus(state=JobState.PENDING, reason="no node")
    )
    cluster.happened()
    assert cluster.told() == []
    cluster.put(cluster.keys.job_status("next"), RUNNING)
    assert cluster.told() == [("job", "next runs: 3 workers")]
    cluster.described(job, 1)
    cluster.plan(job, entries(2, lambda _: (A, ())))
    assert cluster.told() == [("job", "2 blocks of next are placed on a")]
    failed = JobStatus(state=JobState.FAILED, reason="worker a.1: KeyError")
    cluster.put(cluster.keys.job_status("next"), failed)
    (change,) = cluster.happened()
    assert (change.what, change.severity) == ("next failed: worker a.1: KeyError", "error")
    cluster.delete(cluster.keys.plan_part("next", 0))  # the leader clears it
    assert cluster.told() == []


def test_submission_is_told(cluster: Watched) -> None:
    cluster.job("next")
    assert cluster.told() == [("job", "next submitted: train.py")]


def test_workers_that_start_or_die_at_once_are_one_event(cluster: Watched) -> None:
    job = cluster.view.jobs["job"]
    for number in range(20):
        cluster.worker(job, f"a.{number}")
    ((kind, what),) = cluster.told()
    assert kind == "job"
    assert what.startswith("20 workers of job started: a.0, a.1")
    assert what.endswith(" and 12 more")
    for number in range(20):
        cluster.worker(job, f"a.{number}", state=WorkerState.KILLED, reason="killed by SIGKILL")
    (change,) = cluster.happened()
    assert change.severity == "warning"
    assert change.what.startswith("20 workers of job killed (a.0, ")
    assert change.what.endswith("): killed by SIGKILL")


def test_checkpoint_is_told_when_asked_for_when_made_and_when_not(cluster: Watched) -> None:
    def noted(node: str, **note: object) -> None:
        main = MainNote(worker=f"{node}.1", **note)  # type: ignore[arg-type]
        cluster.put(cluster.keys.report("job", node), ReportRecord((), main))

    cluster.put(cluster.keys.job_checkpoint("job"), b"{}")
    assert cluster.told() == [("checkpoint", "a checkpoint of job was asked for")]
    noted("a")
    assert cluster.told() == []
    noted("a", directory="/kept/round-7", round=7)
    assert cluster.told() == [("checkpoint", "checkpoint of job, round 7: /kept/round-7")]
    noted("b", directory="/kept/round-7", round=7)
    assert cluster.told() == []
    noted("b", directory="/kept/round-7", round=7, error="no space")
    (change,) = cluster.happened()
    assert (change.what, change.severity) == ("no checkpoint of job: no space", "warning")


def test_however_many_blocks_change_hands_there_are_few_events() -> None:
    cluster = Watched()
    for name in "abc":
        cluster.node(name)
    job = cluster.job()
    cluster.described(job, 4 * PART_BLOCKS - 1)
    cluster.plan(job, entries(4 * PART_BLOCKS, lambda _: (B, (A, C))))
    cluster.happened()
    cluster.gone("b")
    cluster.plan(job, entries(4 * PART_BLOCKS, lambda block: (A, (C,)) if block % 2 else (C, (A,))))
    told = cluster.told()
    assert [kind for kind, _ in told] == ["leave", "failover"]
    assert told[1][1] == "failover of 8192 blocks of job: b -> a 4096, b -> c 4096"


@REPRODUCIBLE
@given(seed=st.integers(0, 10_000), steps=st.integers(1, 30))
def test_no_change_is_no_event_and_members_are_what_was_told(seed: int, steps: int) -> None:
    cluster, random = Watched(), Random(seed)
    members: set[str] = set()
    for _ in range(steps):
        for _ in range(random.randint(1, 4)):
            _something(cluster, random)
        happened = cluster.happened()
        assert changes(cluster.picture, take(cluster.view, cluster.picture)) == []
        assert changes(cluster.picture, take(cluster.view)) == []
        for change in happened:
            if change.kind is Kind.JOIN and "joined" in change.what:
                members.add(str(change.node))
            elif change.kind is Kind.LEAVE and "left" in change.what:
                members.discard(str(change.node))
        assert members == set(cluster.view.nodes)
        assert len(happened) <= 40


@REPRODUCIBLE
@given(seed=st.integers(0, 10_000))
def test_a_picture_is_the_same_whether_or_not_an_earlier_one_is_known(seed: int) -> None:
    cluster, random = Watched(), Random(seed)
    known: Picture | None = None
    for _ in range(20):
        _something(cluster, random)
        known = take(cluster.view, known)
        fresh = take(cluster.view)
        for name, job in fresh.jobs.items():
            kept = known.jobs[name]
            assert (kept.blocks, kept.moving, kept.sizes) == (job.blocks, job.moving, job.sizes)
            assert [tally.held for tally in kept.tallies.values()] == [
                tally.held for tally in job.tallies.values()
            ]


def _something(cluster: Watched, random: Random) -> None:
    """One change of the cluster, sensible or not."""
    name = random.choice("abcd")
    act = random.randrange(8)
    if act == 0:
        cluster.node(name, server=random.choice(["1", "2", None]))
    elif act == 1 and name in cluster.view.nodes:
        cluster.gone(name)
    elif act == 2:
        cluster.drain(name, stay=random.random() < 0.5)
    elif act == 3 and cluster.keys.drain(name) in cluster.items:
        cluster.delete(cluster.keys.drain(name))
    elif act > 3:
        _something_of_a_job(cluster, random.choice(["one", "two"]), f"{name}.1", random)


def _something_of_a_job(cluster: Watched, job: str, worker: str, random: Random) -> None:
    act = random.randrange(6)
    if cluster.keys.job_spec(job) not in cluster.items:
        cluster.described(cluster.job(job), 5)
    elif act == 0 and random.random() < 0.3:
        cluster.put(random.choice([cluster.keys.job_model(job), cluster.keys.job_spec(job)]), b"?")
    elif act == 1 and random.random() < 0.3:
        for key in [key for key in cluster.items if f"/jobs/{job}/" in key]:
            cluster.delete(key)
    elif act == 2:
        state = random.choice(list(JobState))
        cluster.put(cluster.keys.job_status(job), JobStatus(state=state, reason="so"))
    elif act == 3:
        record = WorkerRecord(node=NodeId("a"), state=random.choice(list(WorkerState)))
        cluster.put(cluster.keys.worker(job, worker), record)
    else:
        servers = random.sample([A, B, C, D], 3)
        made = [
            Entry(
                block=BlockId(block),
                primary=servers[0],
                in_sync=(servers[1],),
                learners=(servers[2],) if random.random() < 0.5 else (),
            )
            for block in range(random.choice([6, 6, 9]))  # of another model, now and then
        ]
        cluster.put(cluster.keys.plan_part(job, 0), encode_part(made))
