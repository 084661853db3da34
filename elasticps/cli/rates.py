"""What happens between two looks at the cluster: rates of nodes and jobs, and who is slow."""

from __future__ import annotations

from statistics import median

import msgspec

from elasticps.cli.answers import Job, JobWorker, Node, Status, Usage

STRAGGLES = 1.5
"""A worker whose own part of a step takes so much longer than the median's is a straggler."""


class NodeRates(msgspec.Struct, frozen=True, kw_only=True):
    """Of one node; None where it does not tell. ``cpu`` is the share of all its processors in use,
    ``data_bytes_per_s`` what its shard server takes and gives.
    """

    node: str
    state: str
    leader: bool
    cpu: float | None = None
    memory: float | None = None
    load_1m: float | None = None
    leads: int = 0
    holds: int = 0
    received_bytes_per_s: float | None = None
    sent_bytes_per_s: float | None = None
    data_bytes_per_s: float = 0.0


class JobRates(msgspec.Struct, frozen=True, kw_only=True):
    """Of one job. ``staleness`` is how many rounds its last worker is behind its first;
    ``slowest`` the worker whose script takes longest for its part of a step, ``slowest_s``, where
    the median worker takes ``median_s``.
    """

    job: str
    state: str
    reason: str
    round: int | None = None
    rounds_per_s: float = 0.0
    workers: int = 0
    staleness: int = 0
    slowest: str = ""
    slowest_s: float | None = None
    median_s: float | None = None

    @property
    def straggles(self) -> bool:
        slow, usual = self.slowest_s, self.median_s
        return slow is not None and usual is not None and slow > STRAGGLES * usual


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """The whole cluster, over ``over_s`` seconds. Jobs that had ended before are left out."""

    cluster: str
    leader: str | None
    over_s: float
    nodes: tuple[NodeRates, ...]
    jobs: tuple[JobRates, ...]


def rates(before: Status, after: Status, over_s: float) -> Rates:
    """What became of the cluster within ``over_s``."""
    nodes = {node.node: node for node in before.nodes}
    jobs = {(job.job, job.key): job for job in before.jobs}
    return Rates(
        cluster=after.cluster,
        leader=after.leader,
        over_s=over_s,
        nodes=tuple(_node(nodes.get(node.node), node) for node in after.nodes),
        jobs=tuple(
            _job(jobs.get((job.job, job.key), job), job, over_s)
            for job in after.jobs
            if not (job.final and jobs.get((job.job, job.key), job).final)
        ),
    )


def _node(before: Node | None, after: Node) -> NodeRates:
    usage = after.usage
    row = NodeRates(
        node=after.node,
        state=after.state if after.reachable else "unreachable",
        leader=after.leader,
        leads=after.leads,
        holds=after.replicas,
        data_bytes_per_s=after.bytes_per_s,
    )
    if usage is None:
        return row
    cpu_s = _rate("cpu_busy_s", before, usage)
    return msgspec.structs.replace(
        row,
        cpu=None if cpu_s is None else min(1.0, cpu_s / usage.cpus),
        memory=_share(usage.memory_used_bytes, usage.memory_bytes),
        load_1m=usage.load_1m,
        received_bytes_per_s=_rate("received_bytes", before, usage),
        sent_bytes_per_s=_rate("sent_bytes", before, usage),
    )


def _rate(field: str, before: Node | None, after: Usage) -> float | None:
    """How fast a count has grown; None where it is not known or has begun anew."""
    usage = before.usage if before else None
    if usage is None or after.at_s <= usage.at_s:
        return None
    was, now = getattr(usage, field), getattr(after, field)
    if was is None or now is None or now < was:
        return None
    rate: float = (now - was) / (after.at_s - usage.at_s)
    return rate


def _share(part: int | None, whole: int | None) -> float | None:
    return part / whole if part is not None and whole else None


def _job(before: Job, after: Job, over_s: float) -> JobRates:
    running = [worker for worker in after.workers if worker.state == "running"]
    rounds = [worker.round for worker in running if worker.round is not None]
    timed = [worker for worker in running if worker.compute_s is not None]
    slowest = max(timed, key=_compute_s, default=None)
    return JobRates(
        job=after.job,
        state=after.state,
        reason=after.reason,
        round=after.round,
        rounds_per_s=_rounds_per_s(before, after, over_s),
        workers=len(running),
        staleness=max(rounds) - min(rounds) if rounds else 0,
        slowest=slowest.uid if slowest else "",
        slowest_s=slowest.compute_s if slowest else None,
        median_s=median(map(_compute_s, timed)) if timed else None,
    )


def _compute_s(worker: JobWorker) -> float:
    return worker.compute_s or 0.0


def _rounds_per_s(before: Job, after: Job, over_s: float) -> float:
    passed = (after.round or 0) - (before.round or 0)
    if passed > 0:
        return passed / over_s
    # A step may take longer than the time between two looks.
    return 1 / after.step_s if after.step_s and after.step_s > over_s and not after.final else 0.0
