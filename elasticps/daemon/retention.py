"""What is deleted of jobs that have ended: what none needs any more, later all of the old ones."""

from __future__ import annotations

from collections.abc import Iterable

from elasticps.daemon.view import JobView
from elasticps.store import Compare, Delete, Keys

MOST_AT_ONCE = 16
"""So many are forgotten before the leader looks again whether a job that trains wants something."""

LEAST_KEPT_S = 60.0
"""Who waits for a job's end asks twice a second, and may have to find another daemon meanwhile."""


def outdated(jobs: Iterable[JobView], kept: int, now_unix: float) -> list[JobView]:
    """The ended jobs beyond the newest ``kept``, those that ended first first, a few at a time.

    One that ended less than ``LEAST_KEPT_S`` ago is left: who submitted it is to see how. They are
    ordered by ``ended_unix``, ties by key. One that is not cleared yet waits; one whose status
    cannot be read may not have ended, and counts for nothing.
    """
    ended = sorted((job for job in jobs if job.ended), key=_age)
    beyond = ended[: max(0, len(ended) - kept)]
    return [job for job in beyond if job.cleared and not _is_new(job, now_unix)][:MOST_AT_ONCE]


def clearing(keys: Keys, job: JobView) -> tuple[tuple[Delete, ...], Compare]:
    """What deletes all of an ended job but spec, model and status, and what it has to compare."""
    deletes = (
        Delete(keys.plan(job.name), prefix=True),
        Delete(keys.reports(job.name), prefix=True),
        Delete(keys.workers(job.name), prefix=True),
        Delete(keys.job_scale(job.name)),
    )
    return deletes, _unchanged(keys, job)


def forgetting(keys: Keys, job: JobView) -> tuple[Delete, Compare]:
    """What deletes all that is kept of an ended job, and what it has to compare."""
    return Delete(keys.job(job.name), prefix=True), _unchanged(keys, job)


def _unchanged(keys: Keys, job: JobView) -> Compare:
    """It is this job still, and none that was given the name since.

    Nobody writes the status of a job that has ended.
    """
    return Compare.modified(keys.job_status(job.name), job.status_revision)


def _is_new(job: JobView, now_unix: float) -> bool:
    """Another leader's clock may have been ahead of this one's: what it says is not trusted far."""
    ended_unix = job.status.ended_unix if job.status else None
    return ended_unix is not None and abs(now_unix - ended_unix) < LEAST_KEPT_S


def _age(job: JobView) -> tuple[float, int]:
    ended_unix = job.status.ended_unix if job.status else None
    return ended_unix or 0.0, job.key
