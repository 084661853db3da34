"""Which of the ended jobs are forgotten, and the transaction that forgets one."""

from __future__ import annotations

from collections.abc import Iterable

from elasticps.daemon.view import JobView
from elasticps.store import Compare, Delete, Keys

MOST_AT_ONCE = 16
"""So many are forgotten before the leader looks again whether a job that trains wants something."""


def outdated(jobs: Iterable[JobView], kept: int) -> list[JobView]:
    """The ended jobs beyond the newest ``kept``, those that ended first first, a few at a time.

    They are ordered by ``ended_unix``, ties by key. One that is not cleared yet waits; one whose
    status cannot be read may not have ended, and counts for nothing.
    """
    ended = sorted((job for job in jobs if job.ended), key=_age)
    beyond = ended[: max(0, len(ended) - kept)]
    return [job for job in beyond if job.cleared][:MOST_AT_ONCE]


def forgetting(keys: Keys, job: JobView) -> tuple[Delete, Compare]:
    """What deletes all that is kept of an ended job, and what it has to compare.

    Nobody writes the status of a job that has ended: its revision says that it is this job still,
    and none that was given the name since.
    """
    unchanged = Compare.modified(keys.job_status(job.name), job.status_revision)
    return Delete(keys.job(job.name), prefix=True), unchanged


def _age(job: JobView) -> tuple[float, int]:
    ended_unix = job.status.ended_unix if job.status else None
    return ended_unix or 0.0, job.key
