"""The leading daemon: what ``daemon/leader.py`` decides of a plan, written under its fence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elasticps.core.affinity import Affinities, affinities
from elasticps.core.ids import NodeId, ServerId, node_of
from elasticps.core.placement import Site
from elasticps.core.plan import Entry, encode_part
from elasticps.core.planner import first_plan, next_plan, targets
from elasticps.core.records import CaughtUpRow, ReportRecord
from elasticps.sim.clock import MS
from elasticps.sim.etcd import Compare, Put

if TYPE_CHECKING:
    from elasticps.sim.daemon import Daemon

LOST_AFTER = 1500 * MS
LOOK_AGAIN = 100 * MS
RETRY = 20 * MS


class Leader:
    """Leads while its fence holds: one write at a time, decided again when it has come back."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._fence = 0
        self._writing = False
        self._due = False
        self._wrote = 0
        self._orphaned_since = -1

    @property
    def leads(self) -> bool:
        return self._fence > 0

    def lead(self, fence: int) -> None:
        self._fence = fence
        self._writing = False
        self._orphaned_since = -1
        self._daemon.clock.note(f"{self._daemon.name} leads, fence {fence}")
        self.changed()

    def depose(self) -> None:
        self._fence = 0

    def changed(self) -> None:
        """The view has changed: decide, after what a real one takes for it."""
        if self._fence and not self._due:
            self._due = True
            self._daemon.later(self._daemon.world.plan_delay(), self._decide)

    def _decide(self) -> None:
        self._due = False
        daemon = self._daemon
        if not self._fence or self._writing or daemon.revision < self._wrote:
            return
        if "lost" in daemon.view:
            return
        entries = daemon.entries
        sites = [
            Site(server=server, node=node_of(server))
            for server in daemon.servers
            if f"drain/{node_of(server)}" not in daemon.view
        ]
        world = daemon.world
        if not entries:
            if sites:
                self._write(first_plan(world.sizes, sites, world.job.replicas))
            return
        alive = daemon.servers
        rows = self._promises
        replicas = world.job.replicas
        homes = targets(world.sizes, entries, sites, alive, replicas, self._wishes)
        planned = next_plan(world.sizes, entries, sites, alive, rows, replicas, homes)
        if planned.changed:
            changed = {entry.block: entry for entry in planned.changed}
            self._write(tuple(changed.get(entry.block, entry) for entry in entries))
        elif planned.orphaned:
            self._wait_for(planned.orphaned, rows)
        else:
            self._orphaned_since = -1

    @property
    def _promises(self) -> list[CaughtUpRow]:
        return [row for report in self._reports.values() for row in report.rows]

    @property
    def _wishes(self) -> Affinities:
        told = {node: report.wishes for node, report in self._reports.items()}
        return affinities(told, len(self._daemon.entries))

    @property
    def _reports(self) -> dict[NodeId, ReportRecord]:
        view = self._daemon.view
        keys = [key for key in sorted(view) if key.startswith("report/")]
        return {NodeId(key.removeprefix("report/")): view[key].value for key in keys}

    def _wait_for(self, orphaned: tuple[Entry, ...], rows: list[CaughtUpRow]) -> None:
        """Blocks without a living holder: one may return; then the job is given up."""
        clock = self._daemon.clock
        if self._orphaned_since < 0:
            self._orphaned_since = clock.now
        promised = {(row.block, row.learner, row.epoch) for row in rows}
        holders = [
            [
                *entry.holders,
                *(each for each in entry.learners if (entry.block, each, entry.epoch) in promised),
            ]
            for entry in orphaned
        ]
        nodes = {node_of(server): None for server in self._daemon.servers}
        forgotten = any(all(node_of(server) in nodes for server in each) for each in holders)
        if forgotten or clock.now - self._orphaned_since > LOST_AFTER:
            self._give_up(holders)
        else:
            self._daemon.later(LOOK_AGAIN, self.changed)

    def _give_up(self, holders: list[list[ServerId]]) -> None:
        self._daemon.world.check.given_up(holders)
        self._put([Put("lost", True)], [])

    def _write(self, entries: tuple[Entry, ...]) -> None:
        self._daemon.world.planned(self._daemon.entries, entries)
        item = self._daemon.view.get("plan")
        known = Compare("plan", item.modified if item else 0)
        self._put([Put("plan", encode_part(entries))], [known])

    def _put(self, puts: list[Put], compares: list[Compare]) -> None:
        daemon = self._daemon
        fence = self._fence
        self._writing = True
        fenced = [Compare("leader", fence, created=True), *compares]

        def done(revision: int | None) -> None:
            if fence != self._fence:
                return
            self._writing = False
            leader = daemon.view.get("leader")
            if revision is not None:
                daemon.clock.note(f"{daemon.name} wrote {puts[0].key} at {revision}")
                self._wrote = revision
            elif leader is not None and leader.created > fence:
                self.depose()
            daemon.later(RETRY, self.changed)

        def timed_out() -> None:
            if fence == self._fence:
                self._writing = False
                daemon.later(RETRY, self.changed)

        daemon.etcd.request(daemon, lambda etcd: etcd.txn(fenced, puts), done, timed_out)
