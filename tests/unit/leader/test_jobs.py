"""What a leader writes of a job's life: its states, its end, and what is damaged."""

from __future__ import annotations

from elasticps.core.past_lives import KEPT
from elasticps.core.records import JobState, ScaleRecord, WorkerState
from elasticps.daemon.view import JobView
from elasticps.store import Delete
from tests.unit.leader.led import ONE_COPY, Led, leads, reason

GARBAGE = b"\x00"


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
