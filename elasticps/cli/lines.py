"""Which of a job's lines are wanted: of which worker, since when."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from elasticps.cli.answers import Job, Line
from elasticps.cli.progress import Progress
from elasticps.errors import UsageError

if TYPE_CHECKING:
    from elasticps.cli.client import Api


def is_late(line: Line, begin_unix: float) -> bool:
    """What is of no known time is for all: it says what was left out."""
    return not line.unix_s or line.unix_s >= begin_unix


@dataclass(slots=True, kw_only=True)
class OneRank:
    """The lines of one rank: of ``worker``, which has it now, or else, where the job has ended, of
    all who had it last.
    """

    job: str
    rank: int
    worker: str | None
    found: bool = False

    def has(self, line: Line) -> bool:
        """True, too, of what is of no worker: it says what was left out."""
        if not line.worker:
            return True
        own = line.rank == self.rank if self.worker is None else line.worker == self.worker
        self.found |= own
        return own

    def check_found(self) -> None:
        """Raises UsageError where the job has ended, and no line was of that rank."""
        if self.found or self.worker is not None:
            return
        raise UsageError(
            f"{self.job} has ended, and no daemon has a line of its rank {self.rank} any more",
            field="rank",
            hint="a daemon keeps the last lines of its workers until it ends itself; what is older"
            " is in its node's log folder (log_dir) for as long as that keeps it",
        )


async def one_rank(api: Api, job: str, rank: int, *, wait: bool) -> OneRank:
    """The worker that has ``rank`` now; with ``wait`` once one has it.

    Raises UsageError when there is none, and the job goes on.
    """
    from elasticps.cli.client import watch

    with Progress() as progress:
        async with aclosing(watch(partial(api.job, job))) as looks:
            async for look in looks:
                found = next((each.uid for each in look.workers if each.rank == rank), None)
                if found is not None or look.final:
                    return OneRank(job=job, rank=rank, worker=found)
                if not wait:
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
