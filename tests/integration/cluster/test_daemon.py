"""One daemon's start: its id, its ports, and what it tells the service manager."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from elasticps.core.records import NodeRecord, decode, encode
from tests.integration.cluster.acts import WAIT_S, Cluster
from tests.integration.cluster.daemons import started_daemon

pytestmark = pytest.mark.asyncio(loop_scope="package")


async def test_second_daemon_of_one_id_is_refused_and_the_first_is_undisturbed(
    shared_cluster: Cluster,
) -> None:
    local = shared_cluster.local
    before = await local.store.get(local.keys.node("n1"))

    async with (
        started_daemon(shared_cluster, "n1") as stubborn,
        started_daemon(shared_cluster, "n1") as told_to_go,
    ):
        await told_to_go.logs("node id n1 is taken: waiting at most 6 s")
        told_to_go.process.send_signal(signal.SIGTERM)
        assert await told_to_go.exit_code() == 0
        assert await stubborn.exit_code() == 2

    assert "error: node id n1 is taken by a living daemon (field node)" in stubborn.log()
    assert "--node" in stubborn.log()
    assert "Traceback" not in stubborn.log()
    assert await local.store.get(local.keys.node("n1")) == before
    assert await local.store.get(local.keys.drain("n1")) is None
    assert local.nodes["n1"].process.returncode is None


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


async def test_daemon_whose_http_port_is_taken_is_refused(
    shared_cluster: Cluster, taken_port: int
) -> None:
    async with started_daemon(shared_cluster, "d1", http=f"127.0.0.1:{taken_port}") as daemon:
        assert await daemon.exit_code() == 2

    assert f"error: cannot serve HTTP at 127.0.0.1:{taken_port}" in daemon.log()
    assert "(field http)" in daemon.log()


async def test_daemon_whose_shard_server_cannot_listen_ends_and_says_where_to_look(
    shared_cluster: Cluster, taken_port: int
) -> None:
    async with started_daemon(shared_cluster, "d1", data=f"127.0.0.1:{taken_port}") as daemon:
        assert await daemon.exit_code() == 1

    assert "node d1: the shard server cannot run: it exited with code 1" in daemon.log()
    (hint,) = [line for line in daemon.log().splitlines() if line.startswith("  hint: ")]
    log_file = Path(hint.removeprefix("  hint: ").removesuffix(" says why"))
    assert "Address already in use" in log_file.read_text()


async def test_service_manager_is_told_ready_only_once_the_node_is_registered(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    store = shared_cluster.local.store
    key = "/elasticps/notified/nodes/w1"
    held = NodeRecord(node="w1", incarnation="other", machine="", http="", version="")
    await store.put(key, encode(held))
    with ServiceManager(tmp_path / "notify") as manager:
        async with started_daemon(
            shared_cluster,
            "w1",
            cluster="notified",
            lease_ttl=60,
            env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"},
        ) as daemon:
            await daemon.logs("node id w1 is taken")
            manager.forget()
            await manager.told("WATCHDOG=1")
            assert not manager.heard("READY=1")

            await store.delete(key)
            await manager.told("READY=1")
            registered = await store.get(key)
            assert registered is not None
            record = decode(registered.value, NodeRecord, key)
            assert record.incarnation != "other"
            (server,) = record.servers
            manager.forget()
            await manager.told("WATCHDOG=1")

            children = children_of(daemon.process.pid)
            assert children
            for child in children:
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{child}/environ").read_bytes()
            daemon.process.send_signal(signal.SIGTERM)
            await manager.told("STOPPING=1")
            assert await daemon.exit_code() == 0
    assert server.server.startswith("w1/")
    assert await store.get(key) is None


class ServiceManager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._lines: list[str] = []

    def __enter__(self) -> ServiceManager:
        self._socket.bind(str(self.path))
        self._socket.setblocking(False)
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def forget(self) -> None:
        self._take()
        self._lines.clear()

    def heard(self, line: str) -> bool:
        self._take()
        return line in self._lines

    async def told(self, line: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while not self.heard(line):
                await asyncio.sleep(0.01)

    def _take(self) -> None:
        while True:
            try:
                self._lines += self._socket.recv(4096).decode().splitlines()
            except BlockingIOError:
                return


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]
