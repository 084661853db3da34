"""Why a job is as it is, in words: what it waits for, what can be done about it, since when."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

import msgspec

from elasticps.core.ids import NodeId
from elasticps.core.records import JobStatus, LivingWorker

QUIET_S, QUIET_STEPS = 30.0, 10.0
"""A job stands still when no worker has stepped for so long, and for so many steps' time."""
_COUNT = re.compile(r"\b[0-9]+\b")


def dated(status: JobStatus, before: JobStatus | None, now_unix: float) -> JobStatus:
    """``status``, with the time since when its state and reason are what they are.

    Counts in a reason may change meanwhile: what is waited for is still the same.
    """
    same = before is not None and _what(before) == _what(status)
    since = before.since_unix if before is not None and same else now_unix
    return msgspec.structs.replace(status, since_unix=since)


def _what(status: JobStatus) -> tuple[object, str]:
    return status.state, _COUNT.sub("#", status.reason)


def waiting_to_start(
    running: int, start_workers: int, wanted: Mapping[NodeId, int], draining: Sequence[NodeId]
) -> str:
    """Of a job that has not begun to train."""
    told = f"waiting for workers: {running} of {start_workers} started"
    room = sum(wanted.values())
    if room >= start_workers:
        return told
    return f"{told}, and there is room for {room}: {room_made_by(draining)}"


def workers_told(
    running: Sequence[LivingWorker],
    wanted: Mapping[NodeId, int],
    asked: int | None,
    draining: Sequence[NodeId],
) -> str:
    """Of a job that trains: how many workers it has, and why not as many as were ``asked`` for."""
    have, planned = len(running), sum(wanted.values())
    if asked is None or have == asked:
        return "1 worker" if have == 1 else f"{have} workers"
    if have > asked:
        return f"{have} workers, {have - asked} to leave: scaled to {asked}"
    told = f"{have} of {asked} workers"
    if planned < asked:
        return f"{told}: no node is free ({_full(wanted)}): {room_made_by(draining)}"
    here = [life.record.node for life in running]
    starting = [node for node in wanted if wanted[node] > here.count(node)]
    return f"{told}: {planned - have} to start on {_listed(starting)}"


def standing_still(
    job: str, still_s: Collection[float], step_s: float, awaited: Mapping[str, int | None]
) -> str:
    """Of a job whose workers have all not stepped for ``still_s``; nothing while one has.

    ``step_s`` is what a step took before. ``awaited`` are the workers that the others wait for, by
    uid, with their ranks. How long is rounded, so that it changes rarely.
    """
    least_s = min(still_s, default=0.0)
    if least_s < max(QUIET_S, QUIET_STEPS * step_s):
        return ""
    told = f"{least_s // 60:.0f} min" if least_s >= 60 else f"{least_s // 10 * 10:.0f} s"
    if not awaited:
        return f"no step for {told}: `elasticps logs {job}` says what its scripts do"
    ranks = [rank for rank in awaited.values() if rank is not None]
    which = f" --rank {ranks[0]}" if len(awaited) == len(ranks) == 1 else ""
    names = [uid if rank is None else f"{uid} (rank {rank})" for uid, rank in awaited.items()]
    whom = "worker" if len(names) == 1 else "workers"
    return (
        f"no step for {told}: waiting for {whom} {_listed(names)}:"
        f" `elasticps logs {job}{which}` says what its script does"
    )


def copies_come(nodes: Collection[NodeId], replicas: int) -> str:
    """What gives a job's blocks their copies again."""
    if len(nodes) >= replicas:
        return "copies are made as nodes have room"
    living = "1 node lives" if len(nodes) == 1 else f"{len(nodes)} nodes live"
    return f"{living}: start a daemon on another machine"


def room_made_by(draining: Sequence[NodeId]) -> str:
    """What gives a job more workers."""
    if not draining:
        return "start a daemon on another machine"
    return f"`elasticps undrain` {_listed(draining)}, or start a daemon on another machine"


def _full(wanted: Mapping[NodeId, int]) -> str:
    return _listed([f"{node} runs {count}" for node, count in wanted.items()])


def _listed(nodes: Sequence[str], most: int = 4) -> str:
    """A reason is one line: of many nodes the first few are named."""
    if len(nodes) <= most:
        return ", ".join(nodes)
    return f"{', '.join(nodes[:most])}, {len(nodes) - most} others"
