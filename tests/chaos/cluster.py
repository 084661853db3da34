"""The cluster under chaos: daemons at places of their own, etcd behind links, and what is true.

What is true is what etcd says: the mirror of it is the same that the daemons decide by.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from elasticps.cli.client import Api
from elasticps.core.ids import JobName, NodeId
from elasticps.daemon.local_cluster import LocalCluster, Place
from elasticps.daemon.view import ClusterView, JobView
from elasticps.errors import StoreError
from elasticps.store import Batch, Snapshot, watch_prefix
from tests.chaos.clock import Clock
from tests.chaos.disk import small_disk
from tests.chaos.links import Links, Weather
from tests.chaos.network import Network
from tests.chaos.ownership import Ownership
from tests.support.etcd import DURABLE, EtcdCluster, started_cluster, started_server
from tests.support.processes import runs

LEASE_TTL_S = 2
WAIT_S = 90.0
LOOK_S = 0.02
SKEWED = "skewed"
"""The node whose wall clock jumps. It is there for that alone."""
WITNESS = "n1"
"""The node whose processes are never killed: they are watched for growth."""

Found = TypeVar("Found")


class ChaosError(Exception):
    """The cluster did not do what it had to: a violation of liveness, or a run that is void."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pids:
    """A node's processes, as the kernel lists them."""

    daemon: int
    servers: tuple[int, ...]
    workers: tuple[int, ...]

    @property
    def all(self) -> tuple[int, ...]:
        return (self.daemon, *self.servers, *self.workers)


class Cluster:
    """A local cluster with its etcd and links. Made by ``started``."""

    def __init__(
        self,
        directory: Path,
        members: EtcdCluster,
        network: Network | None,
        faketime: Path | None,
    ) -> None:
        self.directory = directory
        self.saved = directory / "saved"
        self.etcd = members
        self.network = network
        self.clock: Clock | None = None
        self._faketime = faketime
        self.links: dict[str, Links] = {}
        self.expected: set[str] = set()
        self.local = LocalCluster(
            nodes=0,
            directory=directory / "cluster",
            etcd=members.config(),
            lease_ttl_s=LEASE_TTL_S,
            place=self._place,
        )
        self.view = ClusterView(self.local.keys)
        self.ownership = Ownership(self.local.keys.cluster, LEASE_TTL_S)
        self._changed = asyncio.Condition()
        self._stack = AsyncExitStack()

    # -- nodes ----------------------------------------------------------------------------------

    async def add(self, node: str) -> None:
        """Start the node's daemon: the first time, or anew after a death."""
        if node not in self.links:
            if self.network is not None:
                self.network.add(node)
            host = self.network.gateway(node) if self.network else "127.0.0.1"
            ports = tuple(member.client_port for member in self.etcd.members)
            self.links[node] = await self._stack.enter_async_context(Links(host, ports))
        self.expected.add(node)
        await self.local.add_node(node)

    def _place(self, node: str) -> Place:
        options: tuple[str, ...] = ("--etcd", self.links[node].endpoints)
        host, prefix = "127.0.0.1", tuple[str, ...]()
        if self.network is not None:
            host, prefix = self.network.host(node), self.network.prefix(node)
            options += ("--allow-insecure-network",)
        if self._faketime is not None and node == SKEWED:
            # Nowhere else: libfaketime now and then makes its processes wait for seconds.
            self.clock = Clock(self._faketime, self.directory / "clock")
            prefix += self.clock.prefix
        return Place(host=host, prefix=prefix, options=options)

    def lives(self, node: str) -> bool:
        return self.local.nodes[node].process.returncode is None

    def pids(self, node: str) -> Pids:
        daemon = self.local.nodes[node].process.pid
        rows = children(daemon)
        return Pids(
            daemon=daemon,
            servers=tuple(pid for pid, line in rows if "elasticps.server" in line),
            workers=tuple(pid for pid, line in rows if "elasticps.worker" in line),
        )

    async def killed(self, *pids: int) -> float:
        """SIGKILL all at once; returns when all were sent it, once the kernel has none of them."""
        send(signal.SIGKILL, *pids)
        at = time.monotonic()
        await self.until(lambda: not any(map(runs, pids)), f"{pids} are gone")
        return at

    # -- looking --------------------------------------------------------------------------------

    async def mirror(self) -> None:
        """Follow etcd until cancelled, whatever happens to etcd."""
        while True:
            try:
                async with contextlib.aclosing(
                    watch_prefix(self.local.store, self.local.keys.root)
                ) as batches:
                    async for batch in batches:
                        self._take(batch)
                        async with self._changed:
                            self._changed.notify_all()
            except StoreError:
                await asyncio.sleep(LOOK_S)

    def _take(self, batch: Batch) -> None:
        """One event at a time: what a plan was only for a moment counts too."""
        if isinstance(batch, Snapshot):
            self.view.apply(batch)
            self.ownership.observe(self.view, gap=True)
            return
        for event in batch.events:
            self.view.apply(replace(batch, events=(event,)))
            self.ownership.observe(self.view)

    async def until(
        self, found: Callable[[], Found], what: str, timeout_s: float = WAIT_S
    ) -> Found:
        """Look until ``found`` gives something true. Raises ChaosError after the limit."""
        deadline = time.monotonic() + timeout_s
        while not (result := found()):
            if time.monotonic() > deadline:
                raise ChaosError(f"not within {timeout_s:g} s: {what}; {self.describe()}")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_S), self._changed:
                    await self._changed.wait()
        return result

    def job(self, name: str) -> JobView:
        return self.view.jobs[JobName(name)]

    def unwell(self, name: str) -> str:
        """Why the cluster is not yet as it should be, with all copies and workers; else empty."""
        view, job = self.view, self.view.jobs.get(JobName(name))
        if job is None or job.status is None:
            return "no job"
        if job.status.state.final:
            raise ChaosError(f"the job ended: {job.status.reason}; {job.status.failure}")
        missing = self.expected - {node for node, row in view.nodes.items() if row.servers}
        if missing or view.leader is None or not set(view.nodes) <= self.expected:
            return f"nodes missing: {missing}, leader {view.leader}, nodes {sorted(view.nodes)}"
        alive = {server.server for server in view.servers}
        replicas = min(job.spec.replicas if job.spec else 1, len(self.expected))
        short = [
            entry.block
            for entry in job.entries
            if entry.learners or len(alive.intersection(entry.holders)) < replicas
        ]
        if short or not job.entries:
            return f"blocks short of copies: {short} of {len(job.entries)}"
        nodes = sorted(life.record.node for life in job.running)
        if nodes != sorted(self.expected - set(view.drains)):
            return f"workers on {nodes}"
        return ""

    def describe(self) -> str:
        jobs = {name: job.status and job.status.reason for name, job in self.view.jobs.items()}
        return f"leader {self.view.leader}, nodes {sorted(self.view.nodes)}, jobs {jobs}"

    # -- acting as an operator would ------------------------------------------------------------

    @asynccontextmanager
    async def api(self, *, but: str = "") -> AsyncIterator[Api]:
        """The API of a node that lives, ``but`` another."""
        names = sorted(self.view.nodes, key=lambda name: name != self.view.leader)
        for name in names:
            if name != but and self.lives(name):
                async with Api(self.view.nodes[NodeId(name)].http) as api:
                    yield api
                return
        raise ChaosError("no daemon lives")

    async def drain(self, node: str, *, stay: bool) -> None:
        async with self.api(but=node) as api:
            await api.drain(node, stay=stay)

    async def undrain(self, node: str) -> None:
        async with self.api(but=node) as api:
            await api.undrain(node)

    async def calm(self) -> None:
        """Links are fair, etcd is well, every process that lives is awake."""
        for links in self.links.values():
            await links.becomes(Weather.FAIR)
        if self.clock is not None:
            self.clock.jump(0)
        await asyncio.to_thread(self.etcd.heal)
        for node in sorted(self.local.nodes):
            if self.lives(node):
                send(signal.SIGCONT, *self.pids(node).all)

    async def revive(self) -> None:
        """Start the daemons that should live and do not."""
        async with asyncio.TaskGroup() as starts:
            for node in sorted(self.expected):
                if not self.lives(node):
                    starts.create_task(self.add(node))

    async def aclose(self) -> None:
        await self._stack.aclose()


def send(number: signal.Signals, *pids: int) -> None:
    """Send all of them the signal; one that has just ended does not mind."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def children(parent: int) -> list[tuple[int, str]]:
    """A process's children and their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and fields[0] not in "ZX":
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found.append((int(entry.name), line))
    return found


@asynccontextmanager
async def started(
    nodes: int, members: int, directory: Path, network: Network | None, faketime: Path | None
) -> AsyncIterator[Cluster]:
    """A cluster of ``nodes`` daemons and an etcd of 1 or 3 members; logs stay in ``directory``.

    With a network of its own it also has a small disk of its own, for checkpoints.
    """
    with ExitStack() as stack:
        if members == 1:
            server = await asyncio.to_thread(started_server, stack, directory / "etcd")
            etcd = EtcdCluster([server])
        else:
            etcd = await asyncio.to_thread(started_cluster, stack, directory / "etcd", DURABLE)
        cluster = Cluster(directory, etcd, network, faketime)
        cluster.saved.mkdir()
        if network is not None:
            stack.enter_context(small_disk(cluster.saved))
        async with contextlib.aclosing(cluster), cluster.local:
            mirror = asyncio.create_task(cluster.mirror())
            try:
                async with asyncio.TaskGroup() as starts:
                    for number in range(1, nodes + 1):
                        starts.create_task(cluster.add(f"n{number}"))
                yield cluster
            finally:
                await cluster.calm()
                mirror.cancel()
                await asyncio.wait({mirror})
