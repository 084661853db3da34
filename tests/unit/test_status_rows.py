"""What the status says of a job, whatever its workers have been through."""

from __future__ import annotations

from elasticps.core.records import WorkerState
from elasticps.daemon.http.status import PAST_LIVES, shown_workers
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
