"""What the mirror makes of etcd's keys."""

from __future__ import annotations

import pytest

from elasticps.core.ids import NodeId
from elasticps.core.plan import PART_BLOCKS, Entry, encode_part
from elasticps.core.records import JobState, JobStatus, WorkerState
from elasticps.daemon.view import ClusterView, JobView, local_servers
from elasticps.store import Snapshot
from tests.support.contents import Contents, model_of

GARBAGE = b"\x00"


@pytest.fixture
def etcd() -> Contents:
    return Contents()


def planned(etcd: Contents, job: JobView, servers: list[str], part: int = 0) -> None:
    first = part * PART_BLOCKS
    entries = [Entry(block=first + index, primary=server) for index, server in enumerate(servers)]
    etcd.put(etcd.keys.plan_part(job.name, part), encode_part(entries))


def names(view: ClusterView) -> list[str]:
    return [record.node for record in view.schedulable]


def test_new_listing_replaces_everything(etcd: Contents) -> None:
    etcd.node("a")
    etcd.drain("a")
    etcd.put(etcd.keys.leader, b"a")
    etcd.job()

    etcd.view.apply(Snapshot(items=(), revision=9))

    view = etcd.view
    assert (view.nodes, view.drains, view.jobs, view.leader) == ({}, {}, {}, None)
    assert view.revision == 9


def test_listing_says_the_same_as_the_changes_did(etcd: Contents) -> None:
    etcd.node("b")
    etcd.node("a")
    etcd.drain("b", stay=True)
    etcd.put(etcd.keys.leader, b"a")
    etcd.put(etcd.keys.rebalance, b"1")
    job = etcd.job()
    etcd.described(job, 2)
    etcd.worker(job, "a.1")
    planned(etcd, job, ["a/1", "b/1", "a/1"])
    etcd.put(etcd.keys.job_cancel(job.name), b"{}")
    etcd.put(etcd.keys.job_status(job.name), JobStatus(state=JobState.RUNNING, reason="yes"))

    again = etcd.list_again()

    assert again.jobs == etcd.view.jobs
    assert again.jobs["job"].cancelled  # its key comes before the spec's
    assert (again.nodes, again.drains, again.leader) == (
        etcd.view.nodes,
        etcd.view.drains,
        NodeId("a"),
    )
    assert again.foreign_values == 0


def test_nodes_that_drain_are_not_scheduled_and_still_serve(etcd: Contents) -> None:
    for name in "cab":
        etcd.node(name)
    etcd.drain("b")
    assert names(etcd.view) == ["a", "c"]
    assert [server.server for server in etcd.view.servers] == ["a/1", "b/1", "c/1"]

    etcd.delete(etcd.keys.drain("b"))
    assert names(etcd.view) == ["a", "b", "c"]


def test_unix_sockets_are_for_servers_of_the_same_machine(etcd: Contents) -> None:
    etcd.node("a")
    assert local_servers(etcd.view, "m") == {"a/1"}
    assert local_servers(etcd.view, "elsewhere") == set()


def test_job_is_forgotten_with_its_last_key(etcd: Contents) -> None:
    job = etcd.job()
    etcd.put(etcd.keys.job_cancel("job"), b"{}")
    etcd.delete(etcd.keys.job_spec("job"))
    assert not job.active
    etcd.delete(etcd.keys.job_cancel("job"))
    assert etcd.view.jobs == {}


def test_ended_job_is_not_active(etcd: Contents) -> None:
    job = etcd.job()
    assert job.active
    etcd.put(etcd.keys.job_status("job"), JobStatus(state=JobState.FAILED, reason="no"))
    assert not job.active
    assert etcd.view.active_jobs == []


def test_job_and_worker_are_numbered_by_the_revisions_that_created_their_keys(
    etcd: Contents,
) -> None:
    job = etcd.job()
    etcd.worker(job, "b.1")
    etcd.worker(job, "a.1")
    etcd.worker(job, "b.1", state=WorkerState.RUNNING, round=7)
    assert job.key == 1
    assert [(life.uid, life.worker) for life in job.running] == [("b.1", 2), ("a.1", 3)]


@pytest.mark.parametrize(
    "key",
    ["/elsewhere/nodes/a", "nodes/a/b", "jobs/job", "jobs/job/plan/1", "jobs/job/workers/x", "x"],
)
def test_unknown_key_is_counted_and_changes_nothing(etcd: Contents, key: str) -> None:
    etcd.put(key if key.startswith("/") else etcd.keys.root + key, b"{}")
    view = etcd.view
    assert view.foreign_values == 1
    assert (view.nodes, view.drains, view.jobs) == ({}, {}, {})
    etcd.delete(next(iter(etcd.items)))
    assert view.foreign_values == 1


def test_foreign_value_counts_as_absent_until_a_good_one_comes(etcd: Contents) -> None:
    etcd.node("a")
    etcd.put(etcd.keys.node("a"), GARBAGE)
    assert etcd.view.nodes == {}
    assert etcd.view.foreign_values == 1
    etcd.node("a", "2")
    assert [server.server for server in etcd.view.servers] == ["a/2"]


def test_foreign_spec_is_no_job(etcd: Contents) -> None:
    etcd.put(etcd.keys.job_spec("job"), GARBAGE)
    assert etcd.view.active_jobs == []
    etcd.delete(etcd.keys.job_spec("job"))
    assert etcd.view.jobs == {}


@pytest.mark.parametrize("key", ["status", "model", "plan/00000"])
def test_what_is_there_and_cannot_be_read_is_damage_until_it_can(etcd: Contents, key: str) -> None:
    job = etcd.job()
    etcd.described(job, 2)
    planned(etcd, job, ["a/1", "a/1", "a/1"])
    etcd.put(etcd.keys.job_status("job"), JobStatus(state=JobState.RUNNING, reason=""))
    good = etcd.items[etcd.keys.job("job") + key].value
    assert job.damaged == []

    etcd.put(etcd.keys.job("job") + key, GARBAGE)
    assert job.damaged == [key.partition("/")[0]]
    assert etcd.list_again().jobs["job"].damaged == job.damaged

    etcd.put(etcd.keys.job("job") + key, good)
    assert job.damaged == []

    etcd.put(etcd.keys.job("job") + key, GARBAGE)
    etcd.delete(etcd.keys.job("job") + key)
    assert job.damaged == []


def test_plan_that_was_deleted_is_damage(etcd: Contents) -> None:
    job = etcd.job()
    etcd.described(job, 2)
    assert job.damaged == []  # it was not made yet
    status = JobStatus(state=JobState.RUNNING, reason="", sites=("a/1",))
    etcd.put(etcd.keys.job_status("job"), status)
    assert job.damaged == ["plan"]
    planned(etcd, job, ["a/1", "a/1", "a/1"])
    assert job.damaged == []
    planned(etcd, job, ["a/1"], part=2)
    assert job.damaged == ["plan"]


@pytest.mark.parametrize("key", ["workers/a.1", "reports/a", "plan/00001"])
def test_foreign_value_that_the_job_can_do_without_is_no_damage(etcd: Contents, key: str) -> None:
    job = etcd.job()
    etcd.described(job, 2)
    planned(etcd, job, ["a/1", "a/1", "a/1"])
    etcd.put(etcd.keys.job("job") + key, GARBAGE)
    assert etcd.view.foreign_values == 1
    assert job.damaged == []
    assert (job.workers, job.reports, len(job.entries)) == ({}, {}, 3)


def test_node_holds_what_the_plan_says_even_while_it_is_not_registered(etcd: Contents) -> None:
    job = etcd.job()
    etcd.described(job, 1)
    etcd.node("a")
    etcd.node("b")
    planned(etcd, job, ["a/1", "a/1"])
    assert not etcd.view.holds_nothing(NodeId("a"))
    assert etcd.view.holds_nothing(NodeId("b"))

    etcd.gone("a")
    assert not etcd.view.holds_nothing(NodeId("a"))

    etcd.worker(job, "b.1")
    assert not etcd.view.holds_nothing(NodeId("b"))
    etcd.worker(job, "b.1", state=WorkerState.LEFT)
    assert etcd.view.holds_nothing(NodeId("b"))

    etcd.put(etcd.keys.plan_part("job", 0), GARBAGE)
    assert not etcd.view.holds_nothing(NodeId("b"))  # nobody knows

    etcd.put(etcd.keys.job_status("job"), JobStatus(state=JobState.SUCCEEDED, reason=""))
    assert etcd.view.holds_nothing(NodeId("a"))


def test_learner_is_held_too(etcd: Contents) -> None:
    job = etcd.job()
    etcd.put(etcd.keys.job_model("job"), model_of(1))
    entries = [Entry(block=block, primary="a/1", learners=("b/1",)) for block in range(2)]
    etcd.put(etcd.keys.plan_part(job.name, 0), encode_part(entries))
    assert job.damaged == []
    assert not etcd.view.holds_nothing(NodeId("b"))
