"""An etcd with a leader whose clocks the tests set, and jobs of its cluster."""

from __future__ import annotations

from typing import Any

from elasticps.core.ids import JobKey, node_of
from elasticps.core.proposal import Placed
from elasticps.daemon.leader import Now, Orphans, Write, decide
from elasticps.daemon.view import JobView
from tests.support.contents import Contents

LOST_AFTER_S = 30.0
ONE_COPY = "1 copy of each block: a node that dies takes the job with it"


class Led(Contents):
    """An etcd with a leader, whose clocks the tests set."""

    def __init__(self) -> None:
        super().__init__()
        self.orphans = Orphans(LOST_AFTER_S)
        self.placed: dict[JobKey, Placed] = {}
        self.unix = 1_000_000.0
        self.monotonic = 100.0

    def decided(self) -> list[Write]:
        now = Now(unix=self.unix, monotonic=self.monotonic)
        return decide(self.view, now, self.orphans, self.placed)

    def settle(self) -> list[str]:
        """Let the leader write until it has nothing to write; the reasons it gave."""
        told = []
        for _ in range(100):
            writes = self.decided()
            if not writes:
                return told
            for write in writes:
                self.write(write)
                told.append(write.why)
        raise AssertionError(f"it never comes to rest: {told}")

    def catch_up(self, job: JobView) -> None:
        """Every learner has been filled, as its primary's node reports."""
        by_node: dict[str, dict[str, list]] = {}
        for entry in job.entries:
            for learner in entry.learners:
                report = by_node.setdefault(node_of(entry.primary), {})
                report.setdefault(learner, []).append(entry)
        for node, report in by_node.items():
            self.promised(job, node, report)

    def move_all(self, job: JobView) -> None:
        """Settle and catch up until no learner is left."""
        self.settle()
        while any(entry.learners for entry in job.entries):
            self.catch_up(job)
            self.settle()


def running(etcd: Led, nodes: str, blocks: int, **fields: Any) -> JobView:
    """A job of so many blocks and the ledger that runs on these nodes, a worker on each."""
    for node in nodes:
        etcd.node(node)
    job = etcd.job(**fields)
    etcd.settle()
    for node in nodes:
        etcd.worker(job, f"{node}.1")
    etcd.described(job, blocks)
    etcd.settle()
    return job


def leads(job: JobView) -> dict[str, int]:
    counts: dict[str, int] = {}
    for entry in job.entries:
        counts[entry.primary] = counts.get(entry.primary, 0) + 1
    return counts


def reason(job: JobView) -> str:
    assert job.status is not None
    return job.status.reason
