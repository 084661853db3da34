"""A job's plan while its cluster changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from elasticps.core.affinity import Affinities
from elasticps.core.ids import NodeId, PlanEpoch, ServerId
from elasticps.core.placement import NO_WISHES, Site
from elasticps.core.plan import Entry
from elasticps.core.planner import MOVES_IN_FLIGHT, Planned, first_plan, next_plan, targets
from elasticps.core.records import CaughtUpRow


def site(server: ServerId, weight: float = 1.0, zone: str = "") -> Site:
    return Site(server=server, node=NodeId(server.split("/")[0]), weight=weight, zone=zone)


class Cluster:
    """A job's plan while servers join, drain and die; every step is held against the promises."""

    def __init__(self, blocks: int, replicas: int, random: Random) -> None:
        self.random = random
        self.replicas = replicas
        self.sizes = [random.choice([8, 8, 8, 4]) for _ in range(blocks)]
        self.alive: list[ServerId] = []
        self.drained: set[ServerId] = set()
        self.entries: list[Entry] = []
        self.rows: list[CaughtUpRow] = []
        self.revision = 1
        self.arrived_bytes = 0
        self.weights: dict[ServerId, float] = {}
        self.zones: dict[ServerId, str] = {}
        self.wishes: Affinities = NO_WISHES
        self.balanced = True
        """Are primaries to be even? Wishes make them uneven."""

    @property
    def sites(self) -> list[Site]:
        return [
            site(server, self.weights.get(server, 1.0), self.zones.get(server, ""))
            for server in self.alive
            if server not in self.drained
        ]

    @property
    def copies(self) -> int:
        return min(self.replicas, len(self.sites))

    def add(self, server: ServerId, *, weight: float = 1.0, zone: str = "") -> None:
        self.alive.append(server)
        self.weights[server] = weight
        self.zones[server] = zone

    def begin(self) -> None:
        self.entries = list(first_plan(self.sizes, self.sites, self.replicas))
        self._stamp(self.entries)

    def _stamp(self, changed: Sequence[Entry]) -> None:
        self.revision += 1
        for one in changed:
            epoch = one.epoch or PlanEpoch(self.revision)
            self.entries[one.block] = replace(one, epoch=epoch)

    def catch_up(self, share: float) -> None:
        self.rows = [
            CaughtUpRow(one.block, learner, one.epoch, 1)
            for one in self.entries
            for learner in one.learners
            if learner in self.alive and one.primary in self.alive
            if self.random.random() < share
        ]

    def step(self) -> Planned:
        """Write the leader's next plan."""
        planned = self._next()
        assert self._next() == planned
        for after in planned.changed:
            self._check_step(self.entries[after.block], after)
        before = self._learners()
        self._stamp(planned.changed)
        self.arrived_bytes += sum(self.sizes[row.block] for row in planned.arrived)
        for server, count in self._learners().items():
            assert count <= max(MOVES_IN_FLIGHT, before[server])
        assert {one.block for one in planned.orphaned} == {
            one.block for one in self.entries if not set(one.holders) & set(self.alive)
        }
        for one in self.entries:
            if one not in planned.orphaned:
                assert set(one.servers) <= set(self.alive), "the dead stay in the plan"
        return planned

    def _next(self) -> Planned:
        homes = targets(
            self.sizes, self.entries, self.sites, self.alive, self.replicas, self.wishes
        )
        return next_plan(
            self.sizes, self.entries, self.sites, self.alive, self.rows, self.replicas, homes
        )

    def _learners(self) -> Counter[ServerId]:
        return Counter(
            learner for one in self.entries for learner in one.learners if learner in self.alive
        )

    def _check_step(self, before: Entry, after: Entry) -> None:
        roles = (before.primary, before.in_sync, before.learners)
        same = roles == (after.primary, after.in_sync, after.learners)
        assert after.epoch == (before.epoch if same else 0)
        promised = {row.learner for row in self.rows if row.block == before.block}
        whole = {server for server in (*before.holders, *promised) if server in self.alive}
        assert set(after.holders) <= whole, "a server that lacks ops was promoted"
        assert set(after.learners) <= set(self.alive) - whole
        assert len(set(after.servers)) == len(after.servers)
        assert len(after.holders) >= min(len(whole), self.copies), "a replica was dropped too early"
        eligible = {one.server for one in self.sites}
        under_way = set(before.learners) & eligible
        assert under_way <= set(after.servers), "a move under way was undone"

    def settle(self) -> None:
        """With all learners caught up, the plan reaches its target, and then changes nothing."""
        for _ in range(30):
            self.catch_up(share=1.0)
            planned = self.step()
            if not planned.changed:
                break
        else:
            raise AssertionError("the plan does not settle")
        assert planned.pending_moves == 0
        assert self._learners() == Counter()
        eligible = {one.server for one in self.sites}
        for one in self.entries:
            if one not in planned.orphaned and eligible:
                assert set(one.servers) <= eligible, "a drained server still holds a block"
                assert len(one.holders) == self.copies
        if self.balanced and not planned.orphaned and eligible:
            self._check_balance()

    def _check_balance(self) -> None:
        largest = max(self.sizes)
        weight = sum(one.weight for one in self.sites)
        for one in self.sites:
            leads = self.bytes_of(one.server, held=False)
            assert abs(leads - sum(self.sizes) * one.weight / weight) < largest
        if len({one.weight for one in self.sites}) == 1 and not any(self.zones.values()):
            share = self.copies * sum(self.sizes) / len(self.sites)
            for one in self.sites:
                assert abs(self.bytes_of(one.server, held=True) - share) < largest

    def bytes_of(self, server: ServerId, *, held: bool) -> int:
        """What it leads, or all that it holds."""
        return sum(
            self.sizes[one.block]
            for one in self.entries
            if server in (one.holders if held else [one.primary])
        )


def settled(blocks: int, nodes: int, replicas: int, seed: int = 0, zones: int = 0) -> Cluster:
    """A cluster at rest, of equal nodes, in turn in so many zones."""
    cluster = Cluster(blocks, replicas, Random(seed))
    for number in range(nodes):
        cluster.add(ServerId(f"n{number}/1"), zone=f"z{number % zones}" if zones else "")
    cluster.begin()
    cluster.settle()
    cluster.arrived_bytes = 0
    return cluster
