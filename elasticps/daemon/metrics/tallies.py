"""What the node's children have said, by job, over all their lives."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from elasticps.core.ids import JobKey, JobName, ServerId
from elasticps.daemon.metrics.totals import Totals
from elasticps.wire.control_messages import Progress, ServerLoad
from elasticps.wire.tallies import JobHolding, together

FORGOTTEN_AFTER_S = 3600.0
"""How long the metrics of a job that has ended stay, to be scraped and looked at."""


@dataclass(slots=True, eq=False)
class OfJob:
    """One job on this node. ``lives`` are the workers that train now and their last word.

    ``holdings`` are those of the shard servers that count for it now, by the server's life.
    """

    key: JobKey
    holdings: dict[ServerId, JobHolding] = field(default_factory=dict)
    served: Totals[str] = field(default_factory=Totals)
    trained: Totals[str] = field(default_factory=Totals)
    peer_sent: Totals[str] = field(default_factory=Totals)
    peer_received: Totals[str] = field(default_factory=Totals)
    lives: dict[str, Progress] = field(default_factory=dict)
    began: dict[str, int] = field(default_factory=dict)
    ended_s: float | None = None

    @property
    def holding(self) -> JobHolding:
        """What all servers of the node hold of it."""
        return together(list(self.holdings.values()))


class Tallies:
    """Sums that never fall while this daemon lives, however often its children die.

    ``jobs`` are by name. Once one is forgotten and a later job has its name, that one's begin at 0.
    """

    def __init__(self) -> None:
        self.jobs: dict[JobName, OfJob] = {}
        self.received: Totals[str] = Totals()
        self.sent: Totals[str] = Totals()
        self.refused: Totals[str] = Totals()
        self.server_starts = 0
        self._loop_lags_s: dict[ServerId, float] = {}

    # -- the shard servers ----------------------------------------------------------------------

    def served(self, server: ServerId, load: ServerLoad) -> None:
        """What a shard server's present life has said."""
        tally = load.tally
        for row in tally.jobs:
            job = self._of(row.name, row.job)
            if job is not None:
                job.holdings[server] = row.holding
                job.served.heard(server, msgspec.structs.asdict(row.counts))
        told = {row.job for row in tally.jobs}
        self._let_go(server, (job for job in self.jobs.values() if job.key not in told))
        traffic = tally.traffic
        self.received.heard(server, {name: each.received for name, each in traffic.items()})
        self.sent.heard(server, {name: each.sent for name, each in traffic.items()})
        self.refused.heard(server, tally.refused)
        self._loop_lags_s[server] = tally.loop_lag_s

    @property
    def server_loop_lag_s(self) -> float:
        """Of the server that was latest."""
        return max(self._loop_lags_s.values(), default=0.0)

    def server_ended(self, server: ServerId) -> None:
        """That life is over: it holds nothing any more."""
        self._let_go(server, self.jobs.values())
        self._loop_lags_s.pop(server, None)
        for totals in (self.received, self.sent, self.refused):
            totals.gone(server)

    def _let_go(self, server: ServerId, jobs: Iterable[OfJob]) -> None:
        for job in jobs:
            if job.holdings.pop(server, None) is not None:
                job.served.gone(server)

    # -- workers --------------------------------------------------------------------------------

    def trained(self, name: JobName, key: JobKey, uid: str, progress: Progress) -> None:
        """A worker's word; the round that it tells first is where it began."""
        job = self._of(name, key)
        if job is None:
            return
        began = job.began.setdefault(uid, progress.round)
        counts = {
            "rounds": progress.round - began,
            "pushed_bytes": progress.pushed_bytes,
            "gradient_bytes": progress.gradient_bytes,
        }
        job.trained.heard(uid, counts)
        job.peer_sent.heard(uid, progress.peer_sent)
        job.peer_received.heard(uid, progress.peer_received)
        job.lives[uid] = progress

    def worker_ended(self, uid: str) -> None:
        for job in self.jobs.values():
            for totals in (job.trained, job.peer_sent, job.peer_received):
                totals.gone(uid)
            job.lives.pop(uid, None)
            job.began.pop(uid, None)

    # -- jobs -----------------------------------------------------------------------------------

    def _of(self, name: JobName, key: JobKey) -> OfJob | None:
        """Its row; None: a later job has its name, and this is a late word of an earlier one."""
        job = self.jobs.get(name)
        if job is None or job.key < key:
            job = self.jobs[name] = OfJob(key)
        return job if job.key == key else None

    def forget_ended(
        self, known: Mapping[JobName, JobKey], active: Collection[JobKey], now_s: float
    ) -> None:
        """Let go of jobs that ended a while ago, lest labels pile up, or whose name is another's.

        ``known`` are all jobs that there are.
        """
        for name, job in list(self.jobs.items()):
            if job.key < known.get(name, 0):
                del self.jobs[name]
            elif job.key in active:
                job.ended_s = None
            elif job.ended_s is None:
                job.ended_s = now_s
            elif now_s - job.ended_s > FORGOTTEN_AFTER_S:
                del self.jobs[name]
