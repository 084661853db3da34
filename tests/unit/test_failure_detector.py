"""Whom a daemon watches and by which address, and the watching itself, with sockets alone."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from elasticps.core.ids import NodeId
from elasticps.core.records import NodeRecord, encode
from elasticps.daemon.failure_detector import FailureDetector, Peer, peer_of, watched_by
from elasticps.daemon.view import ClusterView
from elasticps.store import Keys, KeyValue, Snapshot, Store, StoreConfig
from tests.support.processes import open_fds, until

ME = NodeId("me")
MACHINE = "this machine"
NODES = [NodeId(name) for name in "abcdefg"]


@pytest.mark.parametrize(
    ("me", "leader", "watched"),
    [("a", "b", "bcd"), ("e", "b", "fga"), ("g", None, "abc"), ("d", "d", "abcefg")],
    ids=["next-three", "round-the-end", "no-leader", "leader"],
)
def test_leader_watches_everyone_and_another_the_next_three(
    me: str, leader: str | None, watched: str
) -> None:
    chosen = watched_by(NodeId(me), NodeId(leader) if leader else None, NODES)
    assert chosen == list(watched)


def test_few_nodes_all_watch_each_other() -> None:
    for me in NODES[:4]:
        assert sorted(watched_by(me, None, NODES[:4])) == [n for n in NODES[:4] if n != me]
    assert watched_by(NODES[0], None, NODES[:1]) == []
    assert watched_by(NODES[0], NODES[0], []) == []


@pytest.mark.parametrize(
    ("http", "machine", "place"),
    [
        ("http://127.0.0.1:7400", MACHINE, ("127.0.0.1", 7400)),
        ("http://127.0.0.1:7400", "another", None),
        ("http://localhost:7400", "another", None),
        ("http://0.0.0.0:7400", "another", None),
        ("http://[::]:7400", "another", None),
        ("http://[::1]:7400", "another", None),
        ("http://10.0.0.7:7400", "another", ("10.0.0.7", 7400)),
        ("http://[fd00::7]:7400", "another", ("fd00::7", 7400)),
        ("http://node-7:7400", "another", ("node-7", 7400)),
        ("http://10.0.0.7:not-a-port", "another", None),
        ("http://[10.0.0.7", "another", None),
        ("", MACHINE, None),
    ],
)
def test_address_counts_only_where_it_leads_to_the_node_itself(
    http: str, machine: str, place: tuple[str, int] | None
) -> None:
    record = NodeRecord(node=NodeId("a"), incarnation="1", machine=machine, http=http, version="")
    peer = peer_of(record, MACHINE)
    assert (peer and (peer.host, peer.port)) == place
    assert peer is None or peer == Peer(
        node=NodeId("a"), incarnation="1", host=peer.host, port=peer.port
    )


class Listening:
    """What the detector sees of a daemon: a place to connect to. Made by ``listening``."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.accepted = 0
        self.server: asyncio.Server
        self._writers: list[asyncio.StreamWriter] = []

    @property
    def record(self) -> NodeRecord:
        port = self.server.sockets[0].getsockname()[1]
        return NodeRecord(
            node=NodeId(self.name),
            incarnation="1",
            machine=MACHINE,
            http=f"http://127.0.0.1:{port}",
            version="",
        )

    def on_connect(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._writers.append(writer)

    def drop_connections(self) -> None:
        """As a process that ends, or a device between: the peer sees its connection broken."""
        while self._writers:
            self._writers.pop().transport.abort()

    async def aclose(self) -> None:
        self.server.close()
        self.drop_connections()
        await self.server.wait_closed()


@asynccontextmanager
async def listening(name: str) -> AsyncIterator[Listening]:
    node = Listening(name)
    node.server = await asyncio.start_server(node.on_connect, "127.0.0.1", 0)
    try:
        yield node
    finally:
        await node.aclose()


class Watching:
    """A detector of the leader, on a view that the test fills."""

    def __init__(self, store: Store) -> None:
        self.keys = Keys("test")
        self.view = ClusterView(self.keys)
        self.changed = asyncio.Condition()
        self.detector = FailureDetector(store, self.view, self.changed, ME, MACHINE)
        self._revision = 0

    async def see(self, records: Iterable[NodeRecord]) -> None:
        self._revision += 1
        values = {self.keys.node(record.node): encode(record) for record in records}
        items = [
            KeyValue(key=key, value=value, create_revision=1, mod_revision=1, lease=1)
            for key, value in {self.keys.leader: ME.encode(), **values}.items()
        ]
        self.view.apply(Snapshot(items=tuple(items), revision=self._revision))
        async with self.changed:
            self.changed.notify_all()


@asynccontextmanager
async def watching() -> AsyncIterator[Watching]:
    """Nothing is declared dead here, so no etcd is asked."""
    async with Store(StoreConfig(endpoints=("127.0.0.1:1",))) as store:
        watching = Watching(store)
        running = asyncio.create_task(watching.detector.run())
        try:
            yield watching
        finally:
            running.cancel()
            await asyncio.wait({running})
            assert running.cancelled()


async def test_nothing_is_left_of_fifty_nodes_that_come_and_go() -> None:
    async with watching() as detector:
        await asyncio.sleep(0)
        tasks, fds = asyncio.all_tasks(), open_fds()
        for _ in range(5):
            nodes = [listening(f"n{number}") for number in range(10)]
            living = [await node.__aenter__() for node in nodes]
            await detector.see([node.record for node in living])
            await until(lambda seen=living: all(node.accepted for node in seen))
            for node in living[::2]:
                node.drop_connections()
            await detector.see([])
            for context in nodes:
                await context.__aexit__(None, None, None)
        await until(lambda: asyncio.all_tasks() == tasks)
        gc.collect()
        await until(lambda: open_fds() == fds)


async def test_broken_connection_is_made_again_and_is_no_death(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with watching() as detector, listening("a") as node:
        await detector.see([node.record])
        for times in range(1, 5):
            await until(lambda times=times: node.accepted == times)
            node.drop_connections()
        await until(lambda: node.accepted == 5)
    assert "is dead" not in caplog.text


async def test_connection_outlives_a_change_of_the_registration() -> None:
    async with watching() as detector, listening("a") as node, listening("b") as other:
        await detector.see([node.record])
        await until(lambda: node.accepted)
        record = node.record
        changed = NodeRecord(
            node=record.node,
            incarnation=record.incarnation,
            machine=record.machine,
            http=record.http,
            version=record.version,
            worker_slots=7,
        )
        await detector.see([changed, other.record])
        await until(lambda: other.accepted)
        assert node.accepted == 1
