"""Which of a job's lines are wanted: of which worker, since when."""

from __future__ import annotations

from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING

from elasticps.cli.answers import Job, Line
from elasticps.cli.progress import Progress
from elasticps.errors import UsageError

if TYPE_CHECKING:
    from elasticps.cli.client import Api


def is_wanted(line: Line, begin_unix: float, worker: str | None) -> bool:
    """What is of no known time, or of no worker, is for all: it says what was left out."""
    is_late = not line.unix_s or line.unix_s >= begin_unix
    return is_late and (worker is None or line.worker in (worker, ""))


async def worker_of_rank(api: Api, job: str, rank: int, *, wait: bool) -> str:
    """The uid of the worker that has ``rank`` now; with ``wait`` once one has it.

    Raises UsageError when there is none, or will be none any more.
    """
    from elasticps.cli.client import watch

    with Progress() as progress:
        async with aclosing(watch(partial(api.job, job))) as looks:
            async for look in looks:
                found = next((each.uid for each in look.workers if each.rank == rank), None)
                if found is not None:
                    return found
                if look.final or not wait:
                    raise _no_such_rank(look, rank)
                progress.show(f"waiting for a worker of rank {rank}: {look.reason}")
    raise AssertionError("unreachable: a watch has no end")


def _no_such_rank(job: Job, rank: int) -> UsageError:
    known = sorted(worker.rank for worker in job.workers if worker.rank is not None)
    return UsageError(
        f"no worker of {job.job} has rank {rank} now",
        field="rank",
        limit=", ".join(map(str, known)) or f"none has a rank: the job is {job.state}",
        hint="without --rank the lines are of all, and name their nodes",
    )
