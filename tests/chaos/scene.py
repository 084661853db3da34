"""What a fault is given, and what it must prove."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from elasticps.core.ids import NodeId, node_of
from elasticps.core.plan import Entry
from tests.chaos.cluster import LEASE_TTL_S, WITNESS, ChaosError, Cluster, send


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A fault that has happened: the evidence, and since when the cluster can be well again.

    ``failover`` names the figure that the time from ``since`` to the next acknowledged push is of.
    """

    evidence: str
    since: float
    kills: int = 0
    failover: str = ""


@dataclass(slots=True)
class Scene:
    """A job that trains with all its copies on a cluster that is well, and a source of chance.

    ``saved`` is where its checkpoints are, if it makes any.
    """

    cluster: Cluster
    job: str
    replicas: int
    saved: Path
    random: random.Random

    @property
    def entries(self) -> list[Entry]:
        return self.cluster.job(self.job).entries

    @property
    def mortals(self) -> list[str]:
        """Nodes whose processes may be killed."""
        return sorted(self.cluster.expected - {WITNESS})

    def any_node(self) -> str:
        return self.random.choice(sorted(self.cluster.expected))

    def mortal(self) -> str:
        return self.random.choice(self.mortals)

    def leads(self, node: str) -> int:
        return sum(node_of(entry.primary) == node for entry in self.entries)

    def backs(self, node: str) -> int:
        return sum(node in [node_of(server) for server in entry.in_sync] for entry in self.entries)

    def server_pid(self, node: str) -> int:
        servers = self.cluster.pids(node).servers
        if len(servers) != 1:
            raise ChaosError(f"{node} has shard servers {servers}")
        return servers[0]

    async def kill_servers(self, *nodes: str) -> float:
        """SIGKILL their shard servers at once; each daemon starts an empty one."""
        pids = [self.server_pid(node) for node in nodes]
        return await self.cluster.killed(*pids)

    async def kill_node(self, node: str, *, restart: bool = True) -> float:
        """SIGKILL everything on it at once; then start its daemon with nothing in memory."""
        at = await self.cluster.killed(*self.cluster.pids(node).all)
        if restart:
            await self.cluster.local.wait(node)
            await self.cluster.add(node)
        return at

    async def whole(self) -> None:
        """Wait until all nodes, copies and workers are there."""
        await self.cluster.until(lambda: not self.cluster.unwell(self.job), "all is whole")

    async def join(self, guest: str) -> int:
        """Another node comes and takes its share; how many blocks it leads."""
        await self.cluster.add(guest)
        await self.whole()
        return await self.cluster.until(lambda: self.leads(guest), f"{guest} leads blocks")

    async def leave(self, guest: str) -> None:
        """It drains, as an operator would have it, and goes."""
        await self.whole()
        await self.cluster.drain(guest, stay=False)
        code = await self.cluster.local.wait(guest)
        self.cluster.expected.discard(guest)
        if code != 0:
            raise ChaosError(f"{guest} drained and exited with {code}")
        await self.until_gone(guest)

    async def pause(self, pause_s: float) -> None:
        """How long a fault lasts that nothing in the cluster answers to."""
        await asyncio.sleep(pause_s)

    async def until_gone(self, node: str) -> None:
        """Wait until etcd has no registration of the node."""
        name = NodeId(node)
        await self.cluster.until(
            lambda: name not in self.cluster.view.nodes, f"{node} is taken for dead"
        )

    async def until_replaced(self, node: str) -> None:
        """The same, and then for a while longer: others lead its blocks, and it does not know."""
        await self.until_gone(node)
        await self.pause(LEASE_TTL_S)

    @asynccontextmanager
    async def stopped(self, *pids: int) -> AsyncIterator[None]:
        """SIGSTOP; within the block no thread of them runs."""
        send(signal.SIGSTOP, *pids)
        try:
            await self.cluster.until(lambda: all(map(is_stopped, pids)), f"{pids} are stopped")
            yield
        finally:
            send(signal.SIGCONT, *pids)


Fault = Callable[[Scene], Awaitable[Done]]


def is_stopped(pid: int) -> bool:
    try:
        threads = [(task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return True  # nothing of it runs
    return all(stat.rpartition(")")[2].split()[0] in "TZ" for stat in threads)


def done(evidence: str, since: float | None = None, kills: int = 0, failover: str = "") -> Done:
    """The fault has happened; without ``since`` the cluster may be well from now on."""
    at = time.monotonic() if since is None else since
    return Done(evidence=evidence, since=at, kills=kills, failover=failover)


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208 - they come and go
