"""What has happened between two moments of the cluster, told in few words: a pure function.

However many blocks change hands at once, they are one event a job.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Literal

import msgspec

from elasticps.core.ids import JobKey, JobName, NodeId, ServerId, node_of
from elasticps.core.plan import Entry
from elasticps.core.records import JobState, NodeRecord, WorkerState
from elasticps.daemon.picture import JobPicture, Picture

Severity = Literal["info", "warning", "error"]
NAMED = 8
"""How many nodes or workers are told by name; of the others, how many they are."""


class Kind(StrEnum):
    JOIN = "join"
    LEAVE = "leave"
    ELECTION = "election"
    DRAIN = "drain"
    FAILOVER = "failover"
    MOVE = "move"
    REBALANCE = "rebalance"
    JOB = "job"
    CHECKPOINT = "checkpoint"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has happened. ``node`` and ``job``: whom it is about, if anyone.

    ``job_key`` is the job's alone, where its name is a later job's too.
    """

    kind: Kind
    what: str
    node: NodeId | None = None
    job: JobName | None = None
    job_key: JobKey | None = None
    severity: Severity = "info"


FoundDead = Mapping[tuple[NodeId, str], str]
"""By node and incarnation: why this daemon knows that it is dead."""
NOBODY: FoundDead = MappingProxyType({})


def changes(before: Picture, after: Picture, found_dead: FoundDead = NOBODY) -> list[Change]:
    """What has happened from ``before`` to ``after``; nothing where they say the same."""
    happened = [*_left(before, after, found_dead), *_elected(before, after)]
    happened += [*_joined(before, after), *_drained(before, after), *_forgotten(before, after)]
    servers = after.servers()
    for name, job in after.jobs.items():
        known = before.jobs.get(name)
        same = known is not None and known.key == job.key
        told = _job_changes(name, known, job, servers) if known and same else _begun(name, job)
        happened += [msgspec.structs.replace(change, job_key=job.key) for change in told]
    return happened


# -- nodes --------------------------------------------------------------------------------------


def _left(before: Picture, after: Picture, found_dead: FoundDead) -> Iterator[Change]:
    for name, record in before.nodes.items():
        now = after.nodes.get(name)
        if now is record:
            continue
        if now is None or now.incarnation != record.incarnation:
            yield _departure(before, after, record, found_dead.get((name, record.incarnation)))
        elif lost := _server_ids(record) - _server_ids(now):
            what = f"node {name} has lost its shard server {', '.join(sorted(lost))}"
            ends = [end.within for end in now.server_ends if end.server in lost]
            what += f", in {'; in '.join(ends)}" if ends else ""
            yield Change(kind=Kind.LEAVE, node=name, what=what, severity="warning")


def _departure(
    before: Picture, after: Picture, record: NodeRecord, dead_because: str | None
) -> Change:
    """A node that was drained has a mark, and nothing on it; of any other a cause may be known."""
    name = record.node
    mark = before.drains.get(name) or after.drains.get(name)
    replicas, workers = before.load(name)
    still = f"{_count(replicas, 'replica')} and {_count(workers, 'worker')} were on it"
    holds = bool(replicas or workers)
    severity: Severity = "warning" if holds else "info"
    if mark is not None and not holds:
        what = f"node {name} left: drained" + (", to be started again" if mark.restart else "")
    elif mark is not None:
        what = f"node {name} left before it was empty: {still}"
    elif dead_because is not None:
        severity, what = "error", f"node {name} left: killed: {dead_because}; {still}"
    elif holds:
        severity, what = "error", f"node {name} left: killed, frozen or cut off; {still}"
    else:
        what = f"node {name} left; nothing was on it"
    return Change(kind=Kind.LEAVE, node=name, what=what, severity=severity)


def _joined(before: Picture, after: Picture) -> Iterator[Change]:
    for name, record in after.nodes.items():
        known = before.nodes.get(name)
        if known is record:
            continue
        if known is None or known.incarnation != record.incarnation:
            zone = f", zone {record.zone}" if record.zone else ""
            what = f"node {name} joined: elasticps {record.version}, {record.http}{zone}"
            yield Change(kind=Kind.JOIN, node=name, what=what)
        elif _server_ids(record) - _server_ids(known):
            yield Change(kind=Kind.JOIN, node=name, what=f"node {name} has a new shard server")


def _elected(before: Picture, after: Picture) -> Iterator[Change]:
    if after.leader == before.leader:
        return
    if after.leader is None:
        what = f"nobody leads: node {before.leader} did"
        yield Change(kind=Kind.ELECTION, node=before.leader, what=what, severity="warning")
        return
    since = f", after {before.leader}" if before.leader else ""
    yield Change(kind=Kind.ELECTION, node=after.leader, what=f"node {after.leader} leads{since}")


def _drained(before: Picture, after: Picture) -> Iterator[Change]:
    for name, mark in after.drains.items():
        known = before.drains.get(name)
        if known is None:
            then = "it stays" if mark.stay else "it restarts" if mark.restart else "it leaves"
            what = f"node {name} is being drained; then {then}"
            yield Change(kind=Kind.DRAIN, node=name, what=what)
        elif name in after.nodes and any(before.load(name)) and not any(after.load(name)):
            yield Change(kind=Kind.DRAIN, node=name, what=f"node {name} is empty")
    for name in before.drains:
        if name not in after.drains and _same_life(before, after, name):
            what = f"the drain of node {name} is taken back"
            yield Change(kind=Kind.DRAIN, node=name, what=what)


def _same_life(before: Picture, after: Picture, name: NodeId) -> bool:
    known, now = before.nodes.get(name), after.nodes.get(name)
    return known is not None and now is not None and known.incarnation == now.incarnation


def _server_ids(record: NodeRecord) -> set[ServerId]:
    return {server.server for server in record.servers}


# -- jobs ---------------------------------------------------------------------------------------


def _forgotten(before: Picture, after: Picture) -> Iterator[Change]:
    """An ended job that is not there any more; its name may be another's at once."""
    for name, job in before.jobs.items():
        now = after.jobs.get(name)
        if not job.active and (now is None or now.key != job.key):
            yield Change(kind=Kind.JOB, job=name, job_key=job.key, what=f"{name} is forgotten")


def _begun(name: JobName, job: JobPicture) -> Iterator[Change]:
    yield Change(kind=Kind.JOB, job=name, what=f"{name} submitted: {job.spec.argv[0]}")
    yield from _state(name, None, job)


def _job_changes(
    name: JobName, before: JobPicture, after: JobPicture, servers: set[ServerId]
) -> Iterator[Change]:
    yield from _plan(name, before, after, servers)
    yield from _workers(name, before, after)
    yield from _state(name, before, after)
    yield from _checkpoints(name, before, after)


def _plan(
    name: JobName, before: JobPicture, after: JobPicture, servers: set[ServerId]
) -> Iterator[Change]:
    if before.tallies and not after.tallies:
        return  # cleared after the job's end
    if after.blocks and after.blocks > before.blocks and after.blocks == len(after.sizes):
        nodes = {node_of(server) for tally in after.tallies.values() for server in tally.held}
        what = f"{after.blocks} blocks of {name} are placed on {_names(nodes)}"
        yield Change(kind=Kind.JOB, job=name, what=what)
    dead: Counter[_Way] = Counter()
    moved: Counter[_Way] = Counter()
    for old, new in _changed_entries(before, after):
        if old.primary != new.primary:
            way = _Way(source=node_of(old.primary), target=node_of(new.primary))
            (moved if old.primary in servers else dead)[way] += 1
    if dead:
        what = f"failover of {_count(dead.total(), 'block')} of {name}: {_ways(dead)}"
        yield Change(kind=Kind.FAILOVER, job=name, what=what, severity="warning")
    if moved and not (before.moving or after.moving):
        what = f"{_count(moved.total(), 'block')} of {name} led elsewhere: {_ways(moved)}"
        yield Change(kind=Kind.MOVE, job=name, what=what)
    if after.moving and not before.moving:
        to = {
            node_of(server)
            for tally in after.tallies.values()
            for server, held in tally.held.items()
            if held.learner
        }
        what = f"rebalance of {name} begun: blocks are copied to {_names(to)}"
        yield Change(kind=Kind.REBALANCE, job=name, what=what)
    if before.moving and not after.moving:
        yield Change(kind=Kind.REBALANCE, job=name, what=_moved(name, before, after))


def _moved(name: JobName, before: JobPicture, after: JobPicture) -> str:
    """What all moves together have come to, since nothing moved last."""
    copies: Counter[NodeId] = Counter()
    leads, size = 0, 0
    for number, tally in after.tallies.items():
        base = before.base.get(number)
        if base is None or base is tally.part:
            continue
        for old, new in zip(base.entries, tally.part.entries, strict=False):
            fresh = set(new.holders) - set(old.holders)
            copies.update(node_of(server) for server in fresh)
            size += len(fresh) * after.size_of(new.block)
            leads += old.primary != new.primary
    told = f"rebalance of {name} done: {_count(copies.total(), 'copy', 'copies')} made"
    if copies:
        told += f" ({_counted(copies)}; {size / 2**20:.1f} MiB)"
    return told + (f", {_count(leads, 'block')} led elsewhere" if leads else "")


def _changed_entries(before: JobPicture, after: JobPicture) -> Iterator[tuple[Entry, Entry]]:
    for number, tally in after.tallies.items():
        known = before.tallies.get(number)
        if known is not None and known is not tally:
            yield from zip(known.part.entries, tally.part.entries, strict=False)


def _workers(name: JobName, before: JobPicture, after: JobPicture) -> Iterator[Change]:
    started: list[str] = []
    ended: dict[tuple[WorkerState, str], list[str]] = {}
    for uid, life in after.workers.items():
        known = before.workers.get(uid)
        if known is life:
            continue
        state = life.record.state
        if state is WorkerState.RUNNING and known is None:
            started.append(uid)
        elif known is None or known.record.state is not state:
            ended.setdefault((state, life.record.reason), []).append(uid)
    if started and before.status is not None and before.status.started:
        what = f"{_count(len(started), 'worker')} of {name} started: {_names(started)}"
        yield Change(kind=Kind.JOB, job=name, what=what)
    for (state, reason), uids in ended.items():
        if state is WorkerState.SUCCEEDED:
            continue  # the job's end tells it
        why = f": {reason}" if reason else ""
        what = f"{_count(len(uids), 'worker')} of {name} {state.value} ({_names(uids)}){why}"
        yield Change(kind=Kind.JOB, job=name, what=what, severity=_SEVERITY_OF_END[state])


_SEVERITY_OF_END: Mapping[WorkerState, Severity] = {
    WorkerState.RUNNING: "info",
    WorkerState.LEFT: "info",
    WorkerState.KILLED: "warning",
    WorkerState.FAILED: "error",
}


def _state(name: JobName, before: JobPicture | None, after: JobPicture) -> Iterator[Change]:
    known = before.status if before else None
    status = after.status
    if status is None or (known is not None and known.state is status.state):
        return
    told = {
        JobState.PENDING: "waits",
        JobState.RUNNING: "runs",
        JobState.SUCCEEDED: "succeeded",
        JobState.FAILED: "failed",
        JobState.CANCELLED: "was cancelled",
    }[status.state]
    severity: Severity = "info"
    if status.state is JobState.FAILED:
        severity = "error"
    elif status.state is JobState.CANCELLED or (known and known.state is JobState.RUNNING):
        severity = "info" if status.state is JobState.SUCCEEDED else "warning"
    what = f"{name} {told}: {status.reason}"
    yield Change(kind=Kind.JOB, job=name, what=what, severity=severity)


def _checkpoints(name: JobName, before: JobPicture, after: JobPicture) -> Iterator[Change]:
    if after.checkpoint_request > before.checkpoint_request:
        what = f"a checkpoint of {name} was asked for"
        yield Change(kind=Kind.CHECKPOINT, job=name, what=what)
    newest = max((note.round for note in before.mains.values()), default=0)
    for node, note in after.mains.items():
        known = before.mains.get(node)
        if known is note:
            continue
        if note.round > newest:
            what = f"checkpoint of {name}, round {note.round}: {note.directory}"
            yield Change(kind=Kind.CHECKPOINT, node=node, job=name, what=what)
        if note.error and (known is None or known.error != note.error):
            what = f"no checkpoint of {name}: {note.error}"
            yield Change(kind=Kind.CHECKPOINT, node=node, job=name, what=what, severity="warning")


# -- words --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class _Way:
    source: NodeId
    target: NodeId


def _ways(ways: Counter[_Way]) -> str:
    return _listed(f"{way.source} -> {way.target} {ways[way]}" for way in sorted(ways))


def _counted(nodes: Counter[NodeId]) -> str:
    return _listed(f"{node} {nodes[node]}" for node in sorted(nodes))


def _names(names: Iterable[str]) -> str:
    return _listed(sorted(names))


def _listed(items: Iterable[str]) -> str:
    listed = list(items)
    more = len(listed) - NAMED
    return ", ".join(listed[:NAMED]) + (f" and {more} more" if more > 0 else "")


def _count(number: int, noun: str, plural: str = "") -> str:
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
