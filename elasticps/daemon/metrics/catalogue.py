"""Every metric that a daemon exports: its name, kind, labels, and what it teaches.

Names follow Prometheus's rules: base units as suffix, ``_total`` for what never falls. Labels have
few values: a job's name is the only one that users choose, and those of jobs that have ended go
after a while.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import partial

PREFIX = "elasticps_"
UNITS = ("seconds", "bytes")


class Kind(StrEnum):
    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"
    SUMMARY = "summary"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """``name`` is without the prefix that all have."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()

    @property
    def full_name(self) -> str:
        return PREFIX + self.name

    @property
    def unit(self) -> str:
        """The base unit that the name ends with, empty where it counts things."""
        stem = self.name.removesuffix("_total")
        return next((unit for unit in UNITS if stem.endswith(f"_{unit}")), "")


_counter = partial(Metric, kind=Kind.COUNTER)
_gauge = partial(Metric, kind=Kind.GAUGE)
_histogram = partial(Metric, kind=Kind.HISTOGRAM)
_summary = partial(Metric, kind=Kind.SUMMARY)

DAEMON = (
    _gauge(
        name="build_info",
        help="Always 1; the label says which version runs.",
        labels=("version",),
    ),
    _gauge(
        name="ready",
        help="1 while GET /readyz answers 200.",
    ),
    _gauge(
        name="certificate_expiry_timestamp_seconds",
        help="When the node's certificate ends, in Unix time: nobody talks to the node from then "
        "on. Absent without certificates.",
    ),
    _histogram(
        name="loop_lag_seconds",
        help="By how much the daemon's event loop was late with a timer, looked at ten times a "
        "second. A loop that is late by the lease's time to live loses its node.",
    ),
    _gauge(
        name="loop_lag_max_seconds",
        help="The longest lag of the last minute; one long pause hides among a histogram's many "
        "looks.",
    ),
    _histogram(
        name="etcd_request_seconds",
        help="Time from a request to etcd until its answer, of those that were answered.",
    ),
    _counter(
        name="etcd_failures_total",
        help="Requests to etcd that failed: no answer in time, or a connection that broke.",
    ),
    _gauge(
        name="etcd_silence_seconds",
        help="Time since etcd answered last. A third of the lease's time to live is normal.",
    ),
    _counter(
        name="shard_server_starts_total",
        help="Shard server processes that came up. More than one a daemon: it died and was "
        "restarted.",
    ),
)

SERVER = (
    _counter(
        name="pushes_total",
        help="Pushes that this node's server took as primary.",
        labels=("job_name",),
    ),
    _counter(
        name="pushed_bytes_total",
        help="Bytes of gradients in those pushes, as the job's codec made them.",
        labels=("job_name",),
    ),
    _counter(
        name="pulls_total",
        help="Pulls that were answered with a block's value.",
        labels=("job_name",),
    ),
    _counter(
        name="pulled_bytes_total",
        help="Bytes of values in those answers.",
        labels=("job_name",),
    ),
    _counter(
        name="rounds_total",
        help="Rounds that were committed while this node led the job's ledger: the sum over all "
        "nodes is the job's.",
        labels=("job_name",),
    ),
    _summary(
        name="apply_seconds",
        help="Time of optimizer steps on blocks, by primaries and backups: the count is of steps.",
        labels=("job_name",),
    ),
    _counter(
        name="discarded_gradients_total",
        help="Lost work: gradients that had come and were dropped, since a worker of their round "
        "died or the block got another primary. Living workers push theirs again.",
        labels=("job_name",),
    ),
    _counter(
        name="checked_gradients_total",
        help="Gradients that were looked at for an inf or a NaN: all with --nonfinite refuse, "
        "else as many as 0.5 % of the time is enough for.",
        labels=("job_name",),
    ),
    _counter(
        name="nonfinite_gradients_total",
        help="Gradients with an inf or a NaN among those that were looked at. Training is lost "
        "with the first, and every later one is like it.",
        labels=("job_name",),
    ),
    _counter(
        name="migrations_total",
        help="Snapshots of blocks that were sent to other nodes.",
        labels=("job_name",),
    ),
    _counter(
        name="migration_bytes_total",
        help="Bytes of those snapshots: values and optimizer state, to learners and after a gap.",
        labels=("job_name",),
    ),
    _counter(
        name="replicated_ops_total",
        help="Ops that were sent to other replicas, and taken.",
        labels=("job_name",),
    ),
    _counter(
        name="replicated_bytes_total",
        help="Bytes of those ops: gradients, and commands to ledgers.",
        labels=("job_name",),
    ),
    _counter(
        name="received_bytes_total",
        help="Bytes that the shard server received on the data plane, by transport: shm (in "
        "shared memory), unix, tcp, or tls (before encryption). Pushes, snapshots, ops and "
        "requests.",
        labels=("transport",),
    ),
    _counter(
        name="sent_bytes_total",
        help="Bytes that the shard server sent on the data plane: pulled values, snapshots, ops.",
        labels=("transport",),
    ),
    _counter(
        name="refused_pushes_total",
        help="Pushes that were not taken. fenced, behind and unknown: the plan has changed; "
        "stale_generation: a worker came or went; not_serving: the node's lease is over. The "
        "worker tries again after these. refused: it is wrong and stays wrong.",
        labels=("reason",),
    ),
    _gauge(
        name="blocks",
        help="Replicas here, by role: primary, in_sync or learner. The job's ledger is one of "
        "them.",
        labels=(
            "job_name",
            "role",
        ),
    ),
    _gauge(
        name="held_bytes",
        help="Memory of those replicas: values and optimizer state.",
        labels=("job_name",),
    ),
    _gauge(
        name="replication_lag_ops",
        help="Ops that not every counted replica has yet, of the block that is furthest behind.",
        labels=("job_name",),
    ),
    _gauge(
        name="replication_lag_seconds",
        help="For how long a block has waited for its backups: its workers wait with it. Looked at "
        "once a second.",
        labels=("job_name",),
    ),
    _gauge(
        name="staleness_rounds",
        help="Rounds that the slowest worker is behind the fastest; told by who leads the ledger. "
        "0 in synchronous jobs.",
        labels=("job_name",),
    ),
    _gauge(
        name="shard_server_loop_lag_seconds",
        help="By how much the shard server's loop was late with its last report, once a second.",
    ),
)

WORKERS = (
    _gauge(
        name="workers",
        help="Workers of the job that train on this node.",
        labels=("job_name",),
    ),
    _counter(
        name="worker_rounds_total",
        help="Rounds that this node's workers took, together.",
        labels=("job_name",),
    ),
    _counter(
        name="worker_pushed_bytes_total",
        help="Bytes that this node's workers pushed to shard servers, repeated pushes included.",
        labels=("job_name",),
    ),
    _counter(
        name="worker_gradient_bytes_total",
        help="Size of those gradients in their own dtype: the ratio is what the codec saves.",
        labels=("job_name",),
    ),
    _counter(
        name="worker_peer_sent_bytes_total",
        help="Bytes that this node's workers sent to other workers, by transport: "
        "unix, tcp, tls, or gloo, which are sums, as many bytes as a ring takes.",
        labels=("job_name", "transport"),
    ),
    _counter(
        name="worker_peer_received_bytes_total",
        help="Bytes that this node's workers received from other workers, by transport.",
        labels=("job_name", "transport"),
    ),
    _gauge(
        name="worker_step_seconds",
        help="Time from one optimizer step to the next, of the slowest worker on this node.",
        labels=("job_name",),
    ),
)

LEADER = (
    _gauge(
        name="leader",
        help="1 on the daemon that leads.",
    ),
    _gauge(
        name="has_leader",
        help="1 while etcd names a leader, as this daemon sees it.",
    ),
    _gauge(
        name="nodes",
        help="Nodes that are registered. From the leader alone.",
    ),
    _counter(
        name="failovers_total",
        help="Shard servers whose blocks the leader gave to their backups. node_died: its address "
        "refused connections; lease_expired: it was silent for too long; server_died: its "
        "daemon lives; left: it went with blocks still on it.",
        labels=("cause",),
    ),
    _histogram(
        name="failover_detect_seconds",
        help="From the first sign (a connection that broke) until etcd showed the node as gone. "
        "Where the leader saw no sign, as of a frozen machine, nothing is observed: at most "
        "the lease's time to live.",
        labels=("cause",),
    ),
    _histogram(
        name="failover_promote_seconds",
        help="From then until the plan named another primary for every block that it led.",
        labels=("cause",),
    ),
    _histogram(
        name="failover_heal_seconds",
        help="From then until each of its blocks had as many living replicas in sync as before.",
        labels=("cause",),
    ),
    _gauge(
        name="job_state",
        help="1 for the state that the job is in. From the leader alone, as all that follows.",
        labels=(
            "job_name",
            "state",
        ),
    ),
    _gauge(
        name="job_workers",
        help="Workers of the job that live, on all nodes.",
        labels=("job_name",),
    ),
    _gauge(
        name="job_blocks",
        help="Blocks of the job, its ledger included.",
        labels=("job_name",),
    ),
    _gauge(
        name="under_replicated_blocks",
        help="Blocks with fewer living replicas in sync than the job asks for: one more death may "
        "lose them.",
        labels=("job_name",),
    ),
    _gauge(
        name="moving_blocks",
        help="Blocks that have a learner: a copy is under way.",
        labels=("job_name",),
    ),
    _gauge(
        name="lost_pushes",
        help="Pushes of an audited job that were acknowledged and are not there: always 0, or a "
        "bug.",
        labels=("job_name",),
    ),
)

CATALOGUE: dict[str, Metric] = {
    metric.name: metric for metric in (*DAEMON, *SERVER, *WORKERS, *LEADER)
}
