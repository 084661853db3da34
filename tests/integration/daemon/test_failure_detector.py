"""What a dead daemon's connections lead to, on a real etcd: its lease goes, and nobody else's."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import pytest_asyncio
from aetcd import rpc

from elasticps.core.ids import NodeId
from elasticps.core.records import NodeRecord, WorkerRecord, encode
from elasticps.daemon import failure_detector
from elasticps.daemon.failure_detector import FailureDetector, peer_of
from elasticps.daemon.view import ClusterView
from elasticps.store import Store, revoke
from tests.integration.daemon.mirror import Mirrored
from tests.support.processes import until

ME, NODE, OTHER = NodeId("me"), NodeId("a"), NodeId("b")
MACHINE = "this machine"
TTL_S = 600
"""No lease runs out by itself here."""


class Standing:
    """A daemon as the cluster sees it: its place, and its keys under a lease of its own."""

    def __init__(self, cluster: Mirrored, node: NodeId, incarnation: str = "1") -> None:
        self.key = cluster.keys.node(node)
        self.node = node
        self.lease = 0
        self._store = cluster.store
        self._incarnation = incarnation
        self._port = 0
        self._held: list[socket.socket] = []
        self.listen()

    @property
    def record(self) -> NodeRecord:
        return NodeRecord(
            node=self.node,
            incarnation=self._incarnation,
            machine=MACHINE,
            http=f"http://127.0.0.1:{self._port}",
            version="",
        )

    def listen(self) -> None:
        """At the same port as before, if there was one."""
        self._socket = socket.create_server(("127.0.0.1", self._port), backlog=0)
        self._socket.setblocking(False)
        self._port = self._socket.getsockname()[1]

    async def register(self, record: NodeRecord | None = None) -> None:
        granted = await self._store.endpoints.call(
            lambda link: link.lease.LeaseGrant, rpc.LeaseGrantRequest(TTL=TTL_S)
        )
        self.lease = granted.ID
        await self._store.put(self.key, encode(record or self.record), self.lease)

    async def accept(self) -> None:
        accepted, _ = await asyncio.get_running_loop().sock_accept(self._socket)
        self._held.append(accepted)

    def fall_silent(self) -> None:
        """Its connections break; a new one gets no answer, for others fill the queue."""
        waiting = [socket.socket() for _ in range(4)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.1", self._port))
        while self._held:
            self._held.pop().close()
        self._held += waiting

    def die(self) -> None:
        """What the kernel does with a killed process's sockets."""
        self._socket.close()
        while self._held:
            self._held.pop().close()


@asynccontextmanager
async def running(
    store: Store, view: ClusterView, changed: asyncio.Condition
) -> AsyncIterator[None]:
    task = asyncio.create_task(FailureDetector(store, view, changed, ME, MACHINE).run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()


@pytest_asyncio.fixture
async def detector(cluster: Mirrored) -> AsyncIterator[None]:
    async with running(cluster.store, cluster.view, cluster.changed):
        yield


@asynccontextmanager
async def standing(
    cluster: Mirrored, node: NodeId, incarnation: str = "1"
) -> AsyncIterator[Standing]:
    daemon = Standing(cluster, node, incarnation)
    try:
        yield daemon
    finally:
        daemon.die()


async def dies_and_is_found(cluster: Mirrored, daemon: Standing) -> None:
    await daemon.register()
    await daemon.accept()
    daemon.die()
    await cluster.until(lambda: daemon.node not in cluster.view.nodes)


@pytest.mark.usefixtures("detector")
async def test_killed_daemons_registration_workers_and_leadership_go_in_one_step(
    cluster: Mirrored, caplog: pytest.LogCaptureFixture
) -> None:
    async with standing(cluster, NODE) as daemon:
        await daemon.register()
        worker = cluster.keys.worker("job", "a.1")
        await cluster.store.put(worker, encode(WorkerRecord(node=NODE)), daemon.lease)
        await cluster.store.put(cluster.keys.leader, NODE.encode(), daemon.lease)
        await daemon.accept()

        daemon.die()

        await cluster.until(lambda: NODE not in cluster.view.nodes)
        assert cluster.view.leader is None
        assert not cluster.view.jobs
        assert "node=a incarnation=1 is dead" in caplog.text


async def test_two_watchers_that_both_find_a_daemon_dead_do_it_once_and_spare_its_next_life(
    cluster: Mirrored,
) -> None:
    async with standing(cluster, NODE) as daemon:
        await daemon.register()
        await cluster.until(lambda: NODE in cluster.view.nodes)
        peer = peer_of(cluster.view.nodes[NODE], MACHINE)
        assert peer is not None
        found = [
            FailureDetector(cluster.store, cluster.view, cluster.changed, name, MACHINE)
            for name in (ME, NodeId("another"))
        ]
        old_lease = daemon.lease
        both = await asyncio.gather(*(each._declared_dead(peer, "refused") for each in found))
        assert both == [True, True]
        await cluster.until(lambda: NODE not in cluster.view.nodes)
    async with standing(cluster, NODE, "2") as again:
        await again.register()
        assert await found[0]._declared_dead(peer, "refused")  # late, of the life before
        assert not await revoke(cluster.store, old_lease)  # what a later one still does
        assert (await cluster.store.get(again.key)) is not None


@pytest.mark.usefixtures("detector")
async def test_address_that_never_answered_is_no_proof_of_death(
    cluster: Mirrored, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with standing(cluster, NODE) as closed, standing(cluster, OTHER) as dying:
        place = closed.record
        closed.die()
        await closed.register(place)
        await until(lambda: "node=a its lease alone tells" in caplog.text)
        await dies_and_is_found(cluster, dying)
        assert "node=a incarnation=1 is dead" not in caplog.text
        assert NODE in cluster.view.nodes


async def test_next_life_of_a_dead_daemon_keeps_its_registration(
    cluster: Mirrored, caplog: pytest.LogCaptureFixture
) -> None:
    """The detector's view is old: it has not seen yet that the node was started again."""
    async with standing(cluster, NODE) as dead, standing(cluster, NODE, "2") as following:
        await dead.register()
        await cluster.until(lambda: NODE in cluster.view.nodes)
        old = ClusterView(cluster.keys)
        old.nodes = dict(cluster.view.nodes)
        async with running(cluster.store, old, asyncio.Condition()):
            await dead.accept()
            await following.register()

            dead.die()

            await until(lambda: "is dead" in caplog.text)
            await until(lambda: not _tasks_named(f"watch {NODE}"))
        held = await cluster.store.get(following.key)
        assert held is not None
        assert held.lease == following.lease


async def test_daemon_that_comes_back_unseen_between_two_looks_is_watched_again(
    cluster: Mirrored,
) -> None:
    async with standing(cluster, NODE) as daemon:
        await daemon.register()
        await cluster.until(lambda: NODE in cluster.view.nodes)
        unchanged = ClusterView(cluster.keys)
        unchanged.nodes = dict(cluster.view.nodes)
        changed = asyncio.Condition()
        async with running(cluster.store, unchanged, changed):
            await daemon.accept()
            daemon.die()
            await until(lambda: not _tasks_named(f"watch {NODE}"))

            daemon.listen()
            async with changed:
                changed.notify_all()

            await daemon.accept()


@pytest.mark.usefixtures("detector")
async def test_daemon_that_does_not_answer_is_not_declared_dead(
    cluster: Mirrored, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(failure_detector, "CONNECT_TIMEOUT_S", 0.2)
    async with standing(cluster, NODE) as silent, standing(cluster, OTHER) as dying:
        await silent.register()
        await silent.accept()

        silent.fall_silent()

        await until(lambda: "node=a its lease alone tells if it lives: Timeout" in caplog.text)
        await dies_and_is_found(cluster, dying)
        assert "node=a incarnation=1 is dead" not in caplog.text
        assert NODE in cluster.view.nodes


def _tasks_named(name: str) -> list[asyncio.Task[object]]:
    return [task for task in asyncio.all_tasks() if task.get_name() == name]
