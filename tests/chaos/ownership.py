"""Who leads a block: one server an epoch in every plan, and only one that says so at any time."""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass, field

from elasticps.core.ids import (
    LEDGER,
    BlockId,
    JobKey,
    NodeId,
    PlanEpoch,
    ServerId,
    WorkerId,
    node_of,
)
from elasticps.core.plan import Entry
from elasticps.daemon.view import ClusterView, JobView
from elasticps.errors import PeerUnavailable
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import HelloMeta, PullMeta, encode

PROBER = WorkerId(1)
ANSWER_S = 0.5
PERIOD_S = 0.1
KEPT_ENTRIES = 3
RECENT = 12
"""Blocks of the newest job: those of ended ones are served by nobody."""

Block = tuple[JobKey, BlockId]


@dataclass(slots=True)
class Ownership:
    """The plans as they were, and what their servers say when they are asked who leads."""

    cluster: str
    lease_ttl_s: float
    violations: list[str] = field(default_factory=list)
    changes: int = 0
    probes: int = 0
    deposed: set[NodeId] = field(default_factory=set)
    """Living nodes whose lease a fault takes away: by their own clock they may still serve."""
    _history: dict[Block, list[Entry]] = field(default_factory=lambda: defaultdict(list))
    _addresses: dict[ServerId, str] = field(default_factory=dict)
    _excused_until: dict[tuple[Block, ServerId], float] = field(default_factory=dict)
    _served: dict[Block, tuple[PlanEpoch, ServerId, float]] = field(default_factory=dict)

    def observe(self, view: ClusterView, *, gap: bool = False) -> None:
        """Take in the plans of a new revision, of the next one unless there is a ``gap``."""
        alive = {server.server for server in view.servers}
        for server in view.servers:
            self._addresses[server.server] = server.tcp
        for job in view.active_jobs:
            for entry in job.entries:
                self._entry(job, entry, alive, gap)

    def _entry(self, job: JobView, entry: Entry, alive: set[ServerId], gap: bool) -> None:
        history = self._history[job.key, entry.block]
        nodes = [node_of(server) for server in entry.servers]
        if len(set(nodes)) != len(nodes):
            self._violation(f"{entry} has two copies on a node")
        last = history[-1] if history else None
        if last is None or entry.epoch > last.epoch:
            if last is not None and entry.primary != last.primary:
                self.changes += 1
                # One that is well may not have heard yet, and no push of it is acknowledged; one
                # that is taken for dead has to have stopped before.
                well = last.primary in alive or node_of(last.primary) in self.deposed
                until = time.monotonic() + self.lease_ttl_s if well else 0.0
                self._excused_until[(job.key, entry.block), last.primary] = until
                if entry.primary not in last.servers and not (entry.fresh or gap):
                    self._violation(f"{entry} is led by one that held nothing in {last}")
            history.append(entry)
            del history[:-KEPT_ENTRIES]
        elif entry.epoch < last.epoch:
            self._violation(f"the epoch of {entry} is older than that of {last}")
        elif entry.primary != last.primary:
            self._violation(f"{entry} and {last} are two primaries in an epoch")

    async def ask(self, seed: str) -> None:
        """Ask now and then, until cancelled, every server that leads a block or has led it."""
        chance = random.Random(seed)
        while True:
            blocks = sorted(block for block in self._history if block[1] != LEDGER)[-RECENT:]
            moved = [block for block in blocks if self._has_moved(block)]
            if blocks:
                # Where another leads now than did before, somebody may not know it yet.
                await self._ask_about(chance.choice(moved or blocks))
                await self._ask_about(chance.choice(blocks))
            await asyncio.sleep(PERIOD_S)

    def _has_moved(self, block: Block) -> bool:
        return len({entry.primary for entry in self._history[block]}) > 1

    async def _ask_about(self, block: Block) -> None:
        """The newest first: whoever of an older epoch serves after it has served is a violation,
        but for reads within a lease's time of a planned move.
        """
        for entry in reversed(self._history[block]):
            began = time.monotonic()
            try:
                serves = await self._serves(block[0], entry)
            except (PeerUnavailable, TimeoutError):
                continue
            if not serves:
                continue
            epoch, server, at = self._served.get(block, (PlanEpoch(0), entry.primary, 0.0))
            if entry.epoch >= epoch:
                self._served[block] = (entry.epoch, entry.primary, time.monotonic())
            elif (
                server != entry.primary
                and began > at
                and began > self._excused_until.get((block, entry.primary), 0.0)
            ):
                self._violation(
                    f"{entry.primary} serves block {block} in epoch {entry.epoch}"
                    f" {began - at:.3f} s after {server} did in epoch {epoch}"
                )

    async def _serves(self, job: JobKey, entry: Entry) -> bool:
        address = Address.parse(self._addresses[entry.primary])
        async with asyncio.timeout(ANSWER_S), await connect(address, timeout_s=ANSWER_S) as link:
            self.probes += 1
            hello = encode(HelloMeta(cluster=self.cluster, caller=str(PROBER)))
            await link.request(Header(Kind.HELLO), hello, timeout_s=ANSWER_S)
            return await self._says_ok(link, job, entry)

    async def _says_ok(self, link: Connection, job: JobKey, entry: Entry) -> bool:
        header = Header(
            Kind.STATUS, job=job, block=entry.block, plan_epoch=entry.epoch, worker=PROBER
        )
        reply = await link.request(header, encode(PullMeta(None)), timeout_s=ANSWER_S)
        return reply.header.status is Status.OK

    def _violation(self, text: str) -> None:
        if text not in self.violations:
            self.violations.append(text)
