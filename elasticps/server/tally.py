"""What a server tells its daemon for the metrics: counts of work done, and what is held now."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from elasticps.core.ids import JobKey, JobName, WorkerId
from elasticps.core.replication import Replication, Role
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
        self._lags: dict[tuple[JobKey, int], Lag] = {}
        self._names: dict[JobKey, JobName] = {}

    def counts_of(self, job: JobKey, name: JobName) -> JobCounts:
        """The job's counts, to be added to."""
        self._names[job] = name
        return self._counts.setdefault(job, JobCounts())

    def told(self, hosted: Iterable[Hosted], now_s: float) -> ServerTally:
        """All of it as of now. A job that holds nothing any more is told of once more, the last
        time: its counts begin anew if it comes back."""
        by_job: dict[JobKey, list[Hosted]] = {}
        for item in hosted:
            by_job.setdefault(item.job, []).append(item)
        lags = {(item.job, item.id): item for items in by_job.values() for item in items}
        self._lags = {key: self._lags.get(key) or Lag() for key in lags}
        jobs = tuple(
            JobTally(
                job=job,
                name=self._names[job],
                counts=counts,
                holding=self._holding(by_job.get(job, ()), now_s),
            )
            for job, counts in self._counts.items()
        )
        self._counts = {job: counts for job, counts in self._counts.items() if job in by_job}
        self._names = {job: self._names[job] for job in self._counts}
        return ServerTally(
            jobs=jobs,
            traffic=self._traffic.by_transport,
            refused={status.name.lower(): self.refused[status] for status in REASONS},
            loop_lag_s=self.loop_lag_s,
        )

    def _holding(self, hosted: Iterable[Hosted], now_s: float) -> JobHolding:
        roles: Counter[Role] = Counter()
        nbytes, lag_ops, lag_s = 0, 0, 0.0
        staleness: int | None = None
        awaited: tuple[WorkerId, ...] = ()
        for item in hosted:
            role = item.replication.role
            roles[role] += 1
            nbytes += item.nbytes_held
            ops, seconds = self._lags[item.job, item.id].look(item.replication, now_s)
            lag_ops, lag_s = max(lag_ops, ops), max(lag_s, seconds)
            if isinstance(item, LedgerHost) and role is Role.PRIMARY:
                staleness, awaited = item.staleness, item.awaited
        return JobHolding(
            primary=roles[Role.PRIMARY],
            in_sync=roles[Role.IN_SYNC],
            learner=roles[Role.LEARNER],
            nbytes=nbytes,
            lag_ops=lag_ops,
            lag_s=lag_s,
            staleness=staleness,
            awaited=awaited,
        )


class Lag:
    """For how long a primary has had ops that not every counted replica holds.

    Looked at now and then: it is no longer than it says by more than the time between two looks.
    """

    def __init__(self) -> None:
        self._mark = 0
        self._since_s = 0.0

    def look(self, replication: Replication, now_s: float) -> tuple[int, float]:
        """How many ops it lags, and for how many seconds; nothing for one that does not lead."""
        if replication.role is not Role.PRIMARY:
            self._mark = 0
            return 0, 0.0
        if replication.durable >= self._mark:
            self._mark, self._since_s = replication.version, now_s
        return replication.version - replication.durable, now_s - self._since_s
