"""A job's life as the leader decides it: its state, why, and how many workers each node runs."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import reduce

import msgspec

from elasticps.core.ids import NodeId, ServerId, node_of
from elasticps.core.past_lives import BROKEN_OFF, counted
from elasticps.core.plan import Entry
from elasticps.core.reasons import copies_come, room_made_by, waiting_to_start, workers_told
from elasticps.core.records import (
    Attempts,
    Failure,
    JobSpec,
    JobState,
    JobStatus,
    LivingWorker,
    ScaleRecord,
    WorkerState,
)
from elasticps.core.shares import share

GROUP_BROKEN = (
    "the process group that its script made cannot go on without it; start the job again from the"
    " script's own checkpoint"
)


def next_status(
    spec: JobSpec,
    status: JobStatus | None,
    *,
    slots: Mapping[NodeId, int],
    workers: Sequence[LivingWorker],
    revision: int,
    cancelled: bool,
    now_unix: float,
    scale: ScaleRecord | None = None,
    draining: Sequence[NodeId] = (),
    own_group: bool = False,
) -> JobStatus:
    """The status that follows; equal to ``status`` when nothing changes.

    ``slots`` are the nodes that may run workers, and how many; ``draining`` those that may not for
    now; ``workers`` the known lives, as they stand in etcd at ``revision``. ``own_group``: its
    workers make a process group that can lose nobody.
    """
    if status is not None and status.state.final:
        return status
    status = status or JobStatus(state=JobState.PENDING, reason="")
    status = _with_endings(status, workers, revision)
    all_lives = counted(status.past, workers)
    unaudited = status.vanished + all_lives.lives - all_lives.audited
    status = msgspec.structs.replace(
        status,
        asked=scale.workers if scale else None,
        verdict=all_lives.verdict,
        audited=all_lives.audited if spec.audit else 0,
        unaudited=unaudited if spec.audit else 0,
        pushed_bytes=all_lives.pushed_bytes,
        gradient_bytes=all_lives.gradient_bytes,
        checkpoint_attempts=all_lives.checkpoint_attempts,
    )
    if cancelled:
        return _ended(status, JobState.CANCELLED, "cancelled by request", now_unix)
    failed = _failure(status, workers, slots, now_unix, own_group=own_group)
    if failed is not None:
        return failed
    running = [life for life in workers if life.record.state is WorkerState.RUNNING]
    succeeded = [life for life in workers if life.record.state is WorkerState.SUCCEEDED]
    if succeeded and not running and is_unfinished(status, succeeded):
        wanted = _one(slots, status.workers)
        if not wanted:
            return _without_node(status, draining)
        reason = "the last worker did not end in order: one is started to go on in its place"
        return _running(status, wanted, reason)
    if succeeded and not running:
        furthest = max(succeeded, key=lambda life: (life.record.round, bool(life.record.metrics)))
        status = msgspec.structs.replace(
            status, round=furthest.record.round, metrics=furthest.record.metrics
        )
        reason = "; ".join(filter(None, ["all workers finished", str(status.checkpoint_attempts)]))
        return _ended(status, JobState.SUCCEEDED, reason, now_unix)
    if succeeded:
        wanted = _count(running)
        reason = f"{len(succeeded)} workers finished, {len(running)} still running"
        return _running(status, wanted, reason)
    most = scale.workers if scale else spec.max_workers
    wanted = share(slots, most, running, status.workers, scale)
    if not wanted:
        return _without_node(status, draining)
    started = status.started or status.state is JobState.RUNNING
    if len(running) < spec.start_workers and not started:
        reason = waiting_to_start(len(running), spec.start_workers, wanted, draining)
        return msgspec.structs.replace(
            status, state=JobState.PENDING, reason=reason, workers=wanted
        )
    return _running(status, wanted, workers_told(running, wanted, status.asked, draining))


def is_unfinished(status: JobStatus, workers: Iterable[LivingWorker]) -> bool:
    """Was the last end of a worker none in order, as far as ``status`` knows?

    True too while none of ``workers`` has ended in order: nobody has come to the training's end.
    """
    succeeded = (life for life in workers if life.record.state is WorkerState.SUCCEEDED)
    return max((life.revision for life in succeeded), default=-1) <= status.last_broken_off


def attempts(of_workers: Iterable[Attempts]) -> Attempts:
    """All workers' attempts at checkpoints together; they come in the order of their lives."""
    return reduce(Attempts.plus, of_workers, Attempts())


def lost(spec: JobSpec, status: JobStatus, reason: str, now_unix: float) -> JobStatus:
    """The end of a job whose blocks are gone, and how to go on if there may be a checkpoint."""
    if spec.checkpoint_dir:
        again = shlex.join(["elasticps", "submit", "--resume", spec.checkpoint_dir, *spec.argv])
        reason += f"; resume from the last checkpoint: {again}"
        reason += ", or with run in place of submit"
    return _ended(status, JobState.FAILED, reason, now_unix)


def short_of_copies(
    entries: Iterable[Entry], alive: Collection[ServerId], copies: int
) -> list[Entry]:
    """The blocks with fewer living in-sync replicas than ``copies``."""
    return [entry for entry in entries if sum(server in alive for server in entry.holders) < copies]


def with_copies(
    spec: JobSpec, status: JobStatus, entries: Sequence[Entry], alive: Collection[ServerId]
) -> JobStatus:
    """A running job's reason tells what a death would cost it, where that is more than nothing."""
    if status.state is not JobState.RUNNING or not entries:
        return status
    told = [status.reason]
    nodes = {node_of(server) for entry in entries for server in entry.holders}
    short = len(short_of_copies(entries, alive, spec.replicas))
    if spec.replicas == 1:
        told.append("1 copy of each block: a node that dies takes the job with it")
    elif len(nodes) == 1:
        told.append(f"all blocks are on {nodes.pop()} alone: if it dies, the job is lost")
    elif short:
        blocks = f"{short} of {len(entries)} blocks have"
        told.append(f"{blocks} fewer than {spec.replicas} copies")
    if stuck := len(short_of_copies(entries, alive, spec.min_insync)):
        told.append(f"waiting until {stuck} blocks have {spec.min_insync} copies (min-insync)")
    if (short or stuck) and spec.replicas > 1:
        told.append(copies_come({node_of(server) for server in alive}, spec.replicas))
    return msgspec.structs.replace(status, reason="; ".join(told))


def _with_endings(status: JobStatus, workers: Sequence[LivingWorker], revision: int) -> JobStatus:
    """Note who runs and which end was the last one that was not in order.

    Of a worker that vanished it is known alone that it ended before ``revision``. An end in order
    that is seen with it for the first time counts as the earlier one: rather a worker too many.
    """
    known = {life.worker for life in workers}
    vanished = sum(worker not in known for worker in status.running)
    broken_off = [life.revision for life in workers if life.record.state in BROKEN_OFF]
    if vanished:
        broken_off.append(revision)
    running = (life.worker for life in workers if life.record.state is WorkerState.RUNNING)
    return msgspec.structs.replace(
        status,
        running=tuple(sorted(running)),
        vanished=status.vanished + vanished,
        last_broken_off=max(status.last_broken_off, *broken_off, 0),
    )


def _failure(
    status: JobStatus,
    workers: Sequence[LivingWorker],
    slots: Mapping[NodeId, int],
    now_unix: float,
    *,
    own_group: bool,
) -> JobStatus | None:
    failed = [life for life in workers if life.record.state is WorkerState.FAILED]
    if failed:
        return _failed(status, min(failed, key=lambda life: life.worker), now_unix)
    if own_group and (lost_one := _lost_one(status, workers, slots)):
        return _ended(status, JobState.FAILED, f"{lost_one}: {GROUP_BROKEN}", now_unix)
    return None


def _lost_one(
    status: JobStatus, workers: Sequence[LivingWorker], slots: Mapping[NodeId, int]
) -> str:
    """Who of the workers broke off or vanished, in words; empty where nobody has."""
    for life in workers:
        if life.record.state in BROKEN_OFF:
            return f"worker {life.uid}: {life.record.reason}"
    if not status.vanished:
        return ""
    gone = sorted(node for node in status.workers if node not in slots)
    return f"a worker is gone with its node{' ' + ', '.join(gone) if gone else ''}"


def _without_node(status: JobStatus, draining: Sequence[NodeId]) -> JobStatus:
    reason = f"waiting for a node that may run workers: {room_made_by(draining)}"
    return msgspec.structs.replace(status, state=JobState.PENDING, reason=reason, workers={})


def _running(status: JobStatus, wanted: dict[NodeId, int], reason: str) -> JobStatus:
    return msgspec.structs.replace(
        status, state=JobState.RUNNING, reason=reason, workers=wanted, started=True
    )


def _ended(status: JobStatus, state: JobState, reason: str, now_unix: float) -> JobStatus:
    return msgspec.structs.replace(
        status, state=state, reason=reason, workers={}, ended_unix=now_unix
    )


def _failed(status: JobStatus, life: LivingWorker, now_unix: float) -> JobStatus:
    record = life.record
    failure = Failure(
        node=record.node, worker=life.uid, reason=record.reason, traceback=record.traceback
    )
    ended = _ended(status, JobState.FAILED, f"worker {life.uid}: {record.reason}", now_unix)
    return msgspec.structs.replace(ended, failure=failure)


def _count(workers: Sequence[LivingWorker]) -> dict[NodeId, int]:
    counts: dict[NodeId, int] = {}
    for life in workers:
        counts[life.record.node] = counts.get(life.record.node, 0) + 1
    return dict(sorted(counts.items()))


def _one(slots: Mapping[NodeId, int], before: Collection[NodeId]) -> dict[NodeId, int]:
    """One worker, on a node that had one where there is one: its restarts are counted there."""
    able = sorted(node for node in slots if slots[node] > 0)
    return dict.fromkeys(([node for node in able if node in before] or able)[:1], 1)
