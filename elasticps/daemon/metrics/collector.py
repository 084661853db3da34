"""The daemon's numbers as Prometheus's metric families, made anew for each scrape."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    SummaryMetricFamily,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from elasticps.core.ids import JobName
from elasticps.core.jobs import short_of_copies
from elasticps.core.records import JobState
from elasticps.daemon.metrics.catalogue import CATALOGUE, Kind
from elasticps.daemon.metrics.measured import Measured
from elasticps.daemon.metrics.tallies import FORGOTTEN_AFTER_S, OfJob
from elasticps.daemon.metrics.totals import Buckets
from elasticps.daemon.view import ClusterView, JobView

OPENMETRICS = "application/openmetrics-text"
PLAIN = "text/plain; version=0.0.4; charset=utf-8"
Values = Mapping[Any, float]
"""Numbers by the values of their labels (a tuple of str)."""

SERVED = {
    "pushes_total": "pushes",
    "pushed_bytes_total": "pushed_bytes",
    "pulls_total": "pulls",
    "pulled_bytes_total": "pulled_bytes",
    "rounds_total": "rounds",
    "discarded_gradients_total": "discarded",
    "checked_gradients_total": "checked",
    "nonfinite_gradients_total": "nonfinite",
    "migrations_total": "snapshots",
    "migration_bytes_total": "snapshot_bytes",
    "replicated_ops_total": "ops",
    "replicated_bytes_total": "op_bytes",
}
"""Counters by the field of ``JobCounts`` that they are."""
TRAINED = {
    "worker_rounds_total": "rounds",
    "worker_pushed_bytes_total": "pushed_bytes",
    "worker_gradient_bytes_total": "gradient_bytes",
}


class DaemonCollector(Collector):
    """Reads what has been measured, and the view, when it is scraped.

    ``certificate_until`` is in Unix seconds; None where the node has no certificate.
    """

    def __init__(
        self,
        measured: Measured,
        view: ClusterView,
        is_ready: Callable[[], bool],
        certificate_until: Callable[[], float | None],
    ) -> None:
        self._measured = measured
        self._view = view
        self._is_ready = is_ready
        self._certificate_until = certificate_until

    def collect(self) -> Iterator[Family]:
        yield from self._daemon()
        yield from self._server()
        yield from self._workers()
        yield from self._leader()
        if self._measured.leads(self._view):
            yield from self._cluster()

    def _daemon(self) -> Iterator[Family]:
        measured, now_s = self._measured, time.monotonic()
        yield _family("build_info", {(version("elasticps"),): 1})
        yield _single("ready", self._is_ready())
        until = self._certificate_until()
        ends: Values = {} if until is None else {(): until}
        yield _family("certificate_expiry_timestamp_seconds", ends)
        yield _histogram("loop_lag_seconds", {(): measured.loop_lag.seen})
        yield _single("loop_lag_max_seconds", measured.loop_lag.longest(now_s))
        yield _histogram("etcd_request_seconds", {(): measured.etcd_requests})
        yield _single("etcd_failures_total", measured.etcd_failures)
        yield _single("etcd_silence_seconds", max(0.0, now_s - measured.etcd_answered_s))
        yield _single("shard_server_starts_total", measured.tallies.server_starts)

    def _server(self) -> Iterator[Family]:
        tallies = self._measured.tallies
        jobs = tallies.jobs
        for name, field in SERVED.items():
            yield _family(name, {(job,): row.served.of(field) for job, row in jobs.items()})
        yield _summary("apply_seconds", jobs)
        yield _family("received_bytes_total", _by_label(tallies.received.sums))
        yield _family("sent_bytes_total", _by_label(tallies.sent.sums))
        yield _family("refused_pushes_total", _by_label(tallies.refused.sums))
        held = {name: row.holding for name, row in jobs.items()}
        yield _family(
            "blocks",
            {
                (job, role): getattr(holding, role)
                for job, holding in held.items()
                for role in ("primary", "in_sync", "learner")
            },
        )
        yield _family("held_bytes", {(job,): each.nbytes for job, each in held.items()})
        yield _family("replication_lag_ops", {(job,): each.lag_ops for job, each in held.items()})
        yield _family("replication_lag_seconds", {(job,): each.lag_s for job, each in held.items()})
        staleness = {(job,): each.staleness for job, each in held.items()}
        told = {labels: rounds for labels, rounds in staleness.items() if rounds is not None}
        yield _family("staleness_rounds", told)
        yield _single("shard_server_loop_lag_seconds", tallies.server_loop_lag_s)

    def _workers(self) -> Iterator[Family]:
        jobs = self._measured.tallies.jobs
        yield _family("workers", {(job,): len(row.lives) for job, row in jobs.items()})
        for name, field in TRAINED.items():
            yield _family(name, {(job,): row.trained.of(field) for job, row in jobs.items()})
        sent = {job: row.peer_sent.sums for job, row in jobs.items()}
        received = {job: row.peer_received.sums for job, row in jobs.items()}
        yield _family("worker_peer_sent_bytes_total", _by_job_and_label(sent))
        yield _family("worker_peer_received_bytes_total", _by_job_and_label(received))
        slowest = {
            (job,): max(progress.step_s for progress in row.lives.values())
            for job, row in jobs.items()
            if row.lives
        }
        yield _family("worker_step_seconds", slowest)

    def _leader(self) -> Iterator[Family]:
        """Who leads, and what this daemon has counted while it led."""
        measured = self._measured
        yield _single("leader", measured.leads(self._view))
        yield _single("has_leader", self._view.leader is not None)
        yield _family("failovers_total", _by_label(measured.failovers_by_cause))
        for name, by_cause in (
            ("failover_detect_seconds", measured.detect),
            ("failover_promote_seconds", measured.promote),
            ("failover_heal_seconds", measured.heal),
        ):
            yield _histogram(name, {(cause.value,): seen for cause, seen in by_cause.items()})

    def _cluster(self) -> Iterator[Family]:
        """What every daemon could tell, and the leader alone does."""
        yield _single("nodes", len(self._view.nodes))
        jobs = [job for job in self._view.jobs.values() if job.active or _ended_lately(job)]
        states = {
            (job.name, state.value): state is (job.status.state if job.status else JobState.PENDING)
            for job in jobs
            for state in JobState
        }
        yield _family("job_state", states)
        yield _family("job_workers", {(job.name,): len(job.running) for job in jobs})
        yield _family("job_blocks", {(job.name,): len(job.sizes) for job in jobs})
        yield _family("under_replicated_blocks", self._by_job(_short))
        yield _family("moving_blocks", self._by_job(_moving))
        audited = {
            (job.name,): job.status.verdict.lost
            for job in jobs
            if job.status is not None and job.spec is not None and job.spec.audit
        }
        yield _family("lost_pushes", audited)

    def _by_job(self, count: Callable[[JobView, ClusterView], int]) -> Values:
        return {(job.name,): count(job, self._view) for job in self._view.active_jobs}


class Scraped:
    """All of a daemon's metrics, in a registry of their own."""

    def __init__(self, collector: Collector) -> None:
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(collector)
        ProcessCollector(registry=self._registry)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The metrics in the format that ``accept`` (the header) asks for, and its content type."""
        # The library's own choice raises on a version that is no number, and repeats any other.
        if OPENMETRICS in accept.lower():
            encode: Callable[[CollectorRegistry], bytes] = openmetrics.generate_latest
            return encode(self._registry), openmetrics.CONTENT_TYPE_LATEST
        return generate_latest(self._registry), PLAIN


def _short(job: JobView, view: ClusterView) -> int:
    assert job.spec is not None
    alive = {server.server for server in view.servers}
    return len(short_of_copies(job.entries, alive, job.spec.replicas))


def _moving(job: JobView, _: ClusterView) -> int:
    return sum(bool(entry.learners) for part in job.parts.values() for entry in part.entries)


def _ended_lately(job: JobView) -> bool:
    ended_unix = job.status.ended_unix if job.status else None
    return bool(ended_unix) and time.time() - (ended_unix or 0.0) < FORGOTTEN_AFTER_S


def _by_label(values: Mapping[str, float]) -> Values:
    return {(str(label),): value for label, value in values.items()}


def _by_job_and_label(values: Mapping[JobName, Mapping[str, float]]) -> Values:
    return {(job, label): value for job, row in values.items() for label, value in row.items()}


def _single(name: str, value: float) -> Family:
    return _family(name, {(): value})


def _family(name: str, values: Values) -> Family:
    metric = CATALOGUE[name]
    family_type = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = family_type(
        metric.full_name.removesuffix("_total"), metric.help, labels=metric.labels, unit=metric.unit
    )
    for labels, value in values.items():
        family.add_metric(labels, float(value))
    return family


def _summary(name: str, jobs: Mapping[JobName, OfJob]) -> Family:
    metric = CATALOGUE[name]
    family = SummaryMetricFamily(
        metric.full_name, metric.help, labels=metric.labels, unit=metric.unit
    )
    for job, row in jobs.items():
        family.add_metric((job,), int(row.served.of("steps")), row.served.of("apply_s"))
    return family


def _histogram(name: str, seen: Mapping[Any, Buckets]) -> Family:
    metric = CATALOGUE[name]
    family = HistogramMetricFamily(
        metric.full_name, metric.help, labels=metric.labels, unit=metric.unit
    )
    for labels, buckets in seen.items():
        family.add_metric(labels, buckets.cumulative(), buckets.sum)
    return family
