"""The next plan of a job: from who lives and who has caught up to each block's next entry.

Learner, in-sync, primary is the only mechanism; joining, leaving and draining are all it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from elasticps.core.affinity import Affinities
from elasticps.core.ids import BlockId, ServerId
from elasticps.core.placement import NO_WISHES, Site, Spread, place, spread
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
        Entry(
            block=BlockId(block),
            primary=servers[0],
            learners=servers[1:],
            fresh=True,
            goal=servers if len(servers) > 1 else (),
        )
        for block, servers in enumerate(place(sizes, sites, replicas=replicas))
    )


def next_plan(
    sizes: Sequence[int],
    entries: Sequence[Entry],
    sites: Sequence[Site],
    alive: Collection[ServerId],
    caught_up: Sequence[CaughtUpRow],
    replicas: int,
    wanted: Sequence[tuple[ServerId, ...]] | None = None,
) -> Planned:
    """One step towards ``wanted``, or the placement that ``sites`` (who may hold blocks) calls for.

    ``alive`` are all living servers, draining ones too: they go on serving until relieved. The dead
    are dropped at once, and a living holder leads in place of a dead primary.
    """
    if wanted is None:
        wanted = targets(sizes, entries, sites, alive, replicas)
    steps = _Steps(entries, alive, caught_up)
    # Room is scarce: blocks with the fewest copies come first.
    for entry, target in sorted(
        zip(entries, wanted, strict=True), key=lambda pair: len(steps.holders(pair[0]))
    ):
        steps.take(entry, target)
    return Planned(
        changed=tuple(sorted(steps.changed, key=lambda entry: entry.block)),
        arrived=tuple(steps.arrived),
        orphaned=tuple(sorted(steps.orphaned, key=lambda entry: entry.block)),
        pending_moves=steps.pending,
    )


def targets(
    sizes: Sequence[int],
    entries: Sequence[Entry],
    sites: Sequence[Site],
    alive: Collection[ServerId],
    replicas: int,
    wishes: Affinities = NO_WISHES,
) -> list[tuple[ServerId, ...]]:
    """Where each block should be. A move under way counts as made, and is not undone.

    ``wishes`` are by the place of the block among ``entries``.
    """
    if not sites:
        return [_among(entry.holders, alive) for entry in entries]
    room = spread(sites, replicas)
    moving = {
        index
        for index, entry in enumerate(entries)
        if any(learner in room.domains for learner in entry.learners)
    }
    current = [_destined(entry, alive, room) for entry in entries]
    return place(sizes, sites, replicas=replicas, current=current, pinned=moving, wishes=wishes)


def destinations(
    entries: Sequence[Entry], sites: Sequence[Site], alive: Collection[ServerId], replicas: int
) -> list[tuple[ServerId, ...]]:
    """Who holds each block, or will when the move under way is made, the primary first."""
    room = spread(sites, replicas)
    return [_destined(entry, alive, room) for entry in entries]


def _destined(entry: Entry, alive: Collection[ServerId], room: Spread) -> tuple[ServerId, ...]:
    """Where a goal cannot be reached any more: what can of it, and then who holds the block."""
    if not any(learner in room.domains for learner in entry.learners):
        return _among(entry.holders, alive)
    goal = entry.goal or (*entry.learners, *entry.holders)
    home: dict[int, ServerId] = {}
    for server in (*goal, *entry.holders, *entry.learners):
        if server in room.domains and len(home) < room.copies:
            home.setdefault(room.domains[server], server)
    if not entry.goal or entry.goal[0] not in room.domains:
        return tuple(sorted(home.values(), key=lambda server: server not in entry.holders))
    return tuple(home.values())


def _among(servers: tuple[ServerId, ...], chosen: Collection[ServerId]) -> tuple[ServerId, ...]:
    return tuple(server for server in servers if server in chosen)


class _Steps:
    """Each block's next entry, with the room that is left for learners."""

    def __init__(
        self,
        entries: Sequence[Entry],
        alive: Collection[ServerId],
        caught_up: Sequence[CaughtUpRow],
    ) -> None:
        self.changed: list[Entry] = []
        self.arrived: list[CaughtUpRow] = []
        self.orphaned: list[Entry] = []
        self.pending = 0
        self._alive = alive
        self._promises = {(row.block, row.learner, row.epoch): row for row in caught_up}
        self._filling = Counter(
            learner for entry in entries for learner in entry.learners if learner in alive
        )

    def holders(self, entry: Entry) -> list[ServerId]:
        """The living that hold every acknowledged op: they may lead."""
        whole = (*entry.holders, *(row.learner for row in self._rows(entry)))
        return [server for server in whole if server in self._alive]

    def take(self, entry: Entry, target: tuple[ServerId, ...]) -> None:
        holders = self.holders(entry)
        if not holders:
            self.orphaned.append(entry)
            return
        following = self._step(entry, target, holders)
        self.pending += set(following.holders) != set(target)
        if following is not entry:
            self.changed.append(following)
            self.arrived += [row for row in self._rows(entry) if row.learner in holders]

    def _rows(self, entry: Entry) -> list[CaughtUpRow]:
        keys = [(entry.block, learner, entry.epoch) for learner in entry.learners]
        return [self._promises[key] for key in keys if key in self._promises]

    def _step(
        self, entry: Entry, target: tuple[ServerId, ...], holders: Sequence[ServerId]
    ) -> Entry:
        """Promote who caught up, drop the dead, add a learner if there is room.

        Living holders are dropped only once every target holds the block.
        """
        if all(server in holders for server in target):
            return entry.rewritten(primary=target[0], in_sync=target[1:], learners=())
        learners = [
            learner
            for learner in entry.learners
            if learner in self._alive and learner in target and learner not in holders
        ]
        for server in target:
            room = self._filling[server] < MOVES_IN_FLIGHT
            if server not in holders and server not in learners and room:
                learners.append(server)
                self._filling[server] += 1
        heirs = [entry.primary, *target, *holders]
        primary = next(server for server in heirs if server in holders)
        return entry.rewritten(
            primary=primary,
            in_sync=tuple(server for server in holders if server != primary),
            learners=tuple(learners),
            goal=target if learners else (),
        )
