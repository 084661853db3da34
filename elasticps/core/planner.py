"""The next plan of a job: from who lives and who has caught up to each block's next entry.

Learner, in-sync, primary is the only mechanism; joining, leaving and draining are all it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from elasticps.core.ids import BlockId, ServerId
from elasticps.core.placement import Site, place
from elasticps.core.plan import Entry
from elasticps.core.records import CaughtUpRow

MOVES_IN_FLIGHT = 16
"""Learners that one server fills at a time: enough to use a link, few enough to keep serving."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """``changed`` entries are to be written. ``orphaned`` blocks have no living replica."""

    changed: tuple[Entry, ...] = ()
    arrived: tuple[CaughtUpRow, ...] = ()
    orphaned: tuple[Entry, ...] = ()
    pending_moves: int = 0


def first_plan(sizes: Sequence[int], sites: Sequence[Site], replicas: int) -> tuple[Entry, ...]:
    """Where each block begins; backups, where asked for, begin as learners."""
    return tuple(
        Entry(block=BlockId(block), primary=servers[0], learners=servers[1:], fresh=True)
        for block, servers in enumerate(place(sizes, sites, replicas=replicas))
    )


def next_plan(
    sizes: Sequence[int],
    entries: Sequence[Entry],
    sites: Sequence[Site],
    alive: Collection[ServerId],
    caught_up: Sequence[CaughtUpRow],
    replicas: int,
) -> Planned:
    """One step towards the placement that ``sites`` (who may hold blocks) calls for.

    ``alive`` are all living servers, draining ones too: they go on serving until relieved.
    """
    wanted = targets(sizes, entries, sites, alive, replicas)
    promises = {(row.block, row.learner, row.epoch): row for row in caught_up}
    filling = Counter(
        learner for entry in entries for learner in entry.learners if learner in alive
    )
    changed: list[Entry] = []
    arrived: list[CaughtUpRow] = []
    orphaned: list[Entry] = []
    pending = 0
    for entry, target in zip(entries, wanted, strict=True):
        rows = [
            promises[key]
            for learner in entry.learners
            if (key := (entry.block, learner, entry.epoch)) in promises and learner in alive
        ]
        if not rows and not any(server in alive for server in entry.holders):
            orphaned.append(entry)
            continue
        following = _step(entry, target, alive, {row.learner: row for row in rows}, filling)
        pending += set(following.holders) != set(target)
        if following is not entry:
            changed.append(following)
            arrived += rows
    return Planned(
        changed=tuple(changed),
        arrived=tuple(arrived),
        orphaned=tuple(orphaned),
        pending_moves=pending,
    )


def targets(
    sizes: Sequence[int],
    entries: Sequence[Entry],
    sites: Sequence[Site],
    alive: Collection[ServerId],
    replicas: int,
) -> list[tuple[ServerId, ...]]:
    """Where each block should be. A move under way counts as made, so that it is not undone."""
    if not sites:
        return [_among(entry.holders, alive) for entry in entries]
    eligible = {site.server for site in sites}
    current = [
        _assumed(_among(entry.holders, alive), _among(entry.learners, eligible), replicas)
        for entry in entries
    ]
    return place(sizes, sites, replicas=replicas, current=current)


def _among(servers: tuple[ServerId, ...], chosen: Collection[ServerId]) -> tuple[ServerId, ...]:
    return tuple(server for server in servers if server in chosen)


def _assumed(
    holders: tuple[ServerId, ...], learners: tuple[ServerId, ...], replicas: int
) -> tuple[ServerId, ...]:
    return learners if replicas == 1 and learners else holders + learners


def _step(
    entry: Entry,
    target: tuple[ServerId, ...],
    alive: Collection[ServerId],
    promised: Mapping[ServerId, CaughtUpRow],
    filling: Counter[ServerId],
) -> Entry:
    """One block's next entry: promote who caught up, drop the dead, add a learner if there is room.

    Holders are dropped only once every target holds the block.
    """
    holders = [server for server in entry.holders if server in alive]
    holders += [learner for learner in entry.learners if learner in promised]
    if all(server in holders for server in target):
        return entry.rewritten(primary=target[0], in_sync=target[1:], learners=())
    learners = [
        learner
        for learner in entry.learners
        if learner in alive and learner in target and learner not in promised
    ]
    for server in target:
        room = filling[server] < MOVES_IN_FLIGHT
        if server not in holders and server not in learners and room:
            learners.append(server)
            filling[server] += 1
    return entry.rewritten(primary=holders[0], in_sync=tuple(holders[1:]), learners=tuple(learners))
