"""What a server tells its daemon for the metrics: counts of work done, and what is held now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from elasticps.core.ids import JobKey, JobName, WorkerId
from elasticps.core.replication import Role
from elasticps.server.hosted import Hosted
from elasticps.server.ledger_host import LedgerHost
from elasticps.wire.frame import Status
from elasticps.wire.tallies import JobCounts, JobHolding, JobTally, ServerTally
from elasticps.wire.traffic import TrafficBy

REASONS = tuple(status for status in Status if status is not Status.OK)


class Tallies:
    """One server's counts. ``refused`` are pushes by status, ``loop_lag_s`` as in the tally."""

    def __init__(self, traffic: TrafficBy) -> None:
        self.refused: Counter[Status] = Counter()
        self.loop_lag_s = 0.0
        self._traffic = traffic
        self._counts: dict[JobKey, JobCounts] = {}
        self._names: dict[JobKey, JobName] = {}

    def counts_of(self, job: JobKey, name: JobName) -> JobCounts:
        """The job's counts, to be added to."""
        self._names[job] = name
        return self._counts.setdefault(job, JobCounts())

    def told(self, holdings: Mapping[JobKey, Holding]) -> ServerTally:
        """All of it as of now. A job that holds nothing any more is told of once more, the last
        time: its counts begin anew if it comes back."""
        nothing = Holding()
        jobs = tuple(
            JobTally(
                job=job,
                name=self._names[job],
                counts=counts,
                holding=holdings.get(job, nothing).told(),
            )
            for job, counts in self._counts.items()
        )
        self._counts = {job: counts for job, counts in self._counts.items() if job in holdings}
        self._names = {job: self._names[job] for job in self._counts}
        return ServerTally(
            jobs=jobs,
            traffic=self._traffic.by_transport,
            refused={status.name.lower(): self.refused[status] for status in REASONS},
            loop_lag_s=self.loop_lag_s,
        )


@dataclass(slots=True)
class Holding:
    """What a server holds of one job, one replica counted after the other."""

    roles: Counter[Role] = field(default_factory=Counter)
    nbytes: int = 0
    lag_ops: int = 0
    lag_s: float = 0.0
    staleness: int | None = None
    awaited: tuple[WorkerId, ...] = ()

    def add(self, item: Hosted, now_s: float) -> None:
        role = item.replication.role
        self.roles[role] += 1
        self.nbytes += item.nbytes_held
        ops, seconds = item.lag.look(item.replication, now_s)
        self.lag_ops, self.lag_s = max(self.lag_ops, ops), max(self.lag_s, seconds)
        if isinstance(item, LedgerHost) and role is Role.PRIMARY:
            self.staleness, self.awaited = item.staleness, item.awaited

    def told(self) -> JobHolding:
        return JobHolding(
            primary=self.roles[Role.PRIMARY],
            in_sync=self.roles[Role.IN_SYNC],
            learner=self.roles[Role.LEARNER],
            nbytes=self.nbytes,
            lag_ops=self.lag_ops,
            lag_s=self.lag_s,
            staleness=self.staleness,
            awaited=self.awaited,
        )
