"""What the status says of a job, whatever its workers have been through."""

from __future__ import annotations

from elasticps.core.ids import Generation, NodeId, Round
from elasticps.core.records import JobState, JobStatus, PastLives, WorkerState
from elasticps.daemon.http.answers import LocalStatus
from elasticps.daemon.http.status import PAST_LIVES, awaited_workers, shown_workers, tallies_of
from elasticps.daemon.usage import usage
from elasticps.wire.control_messages import Progress, ServerLoad
from elasticps.wire.tallies import JobCounts, JobHolding, JobTally, ServerTally
from tests.support.contents import Contents


def test_a_job_shows_all_living_workers_and_the_last_few_that_ended() -> None:
    contents = Contents()
    job = contents.job()
    for number in range(1, 3 * PAST_LIVES):
        contents.worker(job, f"n1.{number}")
    for number in range(1, 2 * PAST_LIVES):
        contents.worker(job, f"n1.{number}", state=WorkerState.KILLED)
    contents.worker(job, "n1.1", state=WorkerState.LEFT)  # the oldest life, and the newest end
    living = {f"n1.{number}" for number in range(2 * PAST_LIVES, 3 * PAST_LIVES)}
    shown = [life.uid for life in shown_workers(job)]
    assert set(shown[PAST_LIVES:]) == living
    assert shown[0] == "n1.1"
    assert len(shown) == PAST_LIVES + len(living)


def test_what_a_job_has_pushed_counts_workers_whose_records_are_deleted_too() -> None:
    contents = Contents()
    job = contents.job()
    contents.worker(job, "n1.1", state=WorkerState.KILLED, pushed_bytes=20)
    contents.worker(job, "n1.2")
    past = PastLives(lives=3, pushed_bytes=100)
    status = JobStatus(state=JobState.RUNNING, reason="", past=past)
    said = Progress(round=Round(1), generation=Generation(1), rank=0, world=1, pushed_bytes=3)
    for known, pushed in ((None, 23), (status, 123)):
        if known is not None:
            contents.put(contents.keys.job_status("job"), known)
        assert sum(each.pushed_bytes for each in tallies_of(job, {"n1.2": said})) == pushed


def test_whom_a_job_waits_for_is_the_word_of_the_node_that_leads_its_ledger() -> None:
    contents = Contents()
    job = contents.job()
    for uid in ("n1.1", "n2.1"):
        contents.worker(job, uid)
    late = job.workers["n2.1"].worker
    holding = JobHolding(primary=1, awaited=(late,))
    tally = JobTally(job=job.key, name=job.name, counts=JobCounts(), holding=holding)
    load = ServerLoad(blocks=1, bytes_held=0, pushes=0, rounds=0, tally=ServerTally(jobs=(tally,)))
    local = LocalStatus(
        node=NodeId("n1"), foreign_values=0, loads=(load,), usage=usage(), children=(), workers=()
    )
    assert awaited_workers(job, {}, {NodeId("n1"): local}) == {"n2.1": None}
    progress = {"n2.1": Progress(round=Round(3), generation=Generation(1), rank=1, world=2)}
    assert awaited_workers(job, progress, {NodeId("n1"): local}) == {"n2.1": 1}
