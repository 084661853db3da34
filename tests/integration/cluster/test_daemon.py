"""One daemon's start: its id, its ports, and what it tells the service manager."""

from __future__ import annotations

import asyncio
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from elasticps.cli import answers
from elasticps.cli.client import Api
from elasticps.core.ids import NodeId, node_of
from elasticps.core.records import NodeRecord, decode, encode
from elasticps.store import Keys
from tests.integration.cluster.acts import WAIT_S, Cluster
from tests.integration.cluster.conftest import Script
from tests.integration.cluster.daemons import Daemon, started_daemon
from tests.support.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="package")


@pytest.mark.long
async def test_second_daemon_of_one_id_is_refused_and_the_first_is_undisturbed(
    shared_cluster: Cluster,
) -> None:
    local = shared_cluster.local
    before = await local.store.get(local.keys.node("n1"))

    async with started_daemon(shared_cluster, "n1", lease_ttl=2) as second:
        await second.logs("node id n1 is taken: waiting at most 4 s")
        assert await second.exit_code() == 2

    assert "error: node id n1 is taken by a living daemon (field node)" in second.log()
    assert "--node" in second.log()
    assert "Traceback" not in second.log()
    assert await local.store.get(local.keys.node("n1")) == before
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
    shared_cluster: Cluster, tmp_path: Path, script: Script
) -> None:
    store, keys = shared_cluster.local.store, Keys("notified")
    held = NodeRecord(node=NodeId("w1"), incarnation="other", machine="", http="", version="")
    await store.put(keys.node("w1"), encode(held))
    with ServiceManager(tmp_path / "notify") as manager:
        async with started_daemon(
            shared_cluster,
            "w1",
            cluster=keys.cluster,
            lease_ttl=60,
            drain_timeout=0.5,
            env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "200000"},
        ) as daemon:
            await daemon.logs("node id w1 is taken")
            manager.forget()
            await manager.told("WATCHDOG=1")
            assert not manager.heard("READY=1")

            await store.delete(keys.node("w1"))
            await manager.told("READY=1")
            registered = await store.get(keys.node("w1"))
            assert registered is not None
            record = decode(registered.value, NodeRecord, registered.key)
            assert record.incarnation != "other"
            assert [node_of(server.server) for server in record.servers] == ["w1"]
            manager.forget()
            await manager.told("WATCHDOG=1")

            children = children_of(daemon.process.pid)
            assert children
            for child in children:
                assert b"NOTIFY_SOCKET" not in Path(f"/proc/{child}/environ").read_bytes()

            # The only node, with a job that does not end: it goes when the time to drain is over.
            await start_endless_job(record.http, script("import time; time.sleep(1000)"))
            await daemon.logs("worker=w1.1 started")
            daemon.process.send_signal(signal.SIGTERM)
            await manager.told("STOPPING=1")
            assert await daemon.exit_code() == 1
    assert "draining for at most 0.5 s; ask again to leave at once" in daemon.log()
    assert "leaving with blocks or workers of active jobs still here" in daemon.log()
    assert "Traceback" not in daemon.log()
    left = [item.key for item in (await store.list(keys.root)).items]
    assert keys.node("w1") not in left
    assert keys.drain("w1") not in left
    await store.delete_prefix(keys.root)


async def test_watchdog_of_a_daemon_that_can_take_no_connection_is_not_fed(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    with ServiceManager(tmp_path / "notify") as manager:
        async with started_daemon(
            shared_cluster,
            "w2",
            cluster="unfed",
            env={"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "400000"},
        ) as daemon:
            pid = daemon.process.pid
            await manager.told("READY=1")
            await manager.told("WATCHDOG=1")
            allowed = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, allowed[1]))
            await daemon.logs("the watchdog is not fed: the API")
            manager.forget()
            await fault_again(daemon)
            assert not manager.heard("WATCHDOG=1")

            resource.prlimit(pid, resource.RLIMIT_NOFILE, allowed)
            await manager.told("WATCHDOG=1")
    await shared_cluster.local.store.delete_prefix(Keys("unfed").root)


async def fault_again(daemon: Daemon) -> None:
    fault = "the watchdog is not fed"
    before = daemon.log().count(fault)
    await until(lambda: daemon.log().count(fault) >= before + 3, timeout_s=WAIT_S)


async def test_reload_takes_what_it_can_and_names_what_waits_for_a_restart(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    store, keys = shared_cluster.local.store, Keys("reloaded")
    file = tmp_path / "elasticps.toml"
    file.write_text("weight = 1.0\nlease_ttl = 3\n")

    async def record() -> NodeRecord:
        item = await store.get(keys.node("w3"))
        assert item is not None
        return decode(item.value, NodeRecord, item.key)

    with ServiceManager(tmp_path / "notify") as manager:
        async with started_daemon(
            shared_cluster,
            "w3",
            cluster=keys.cluster,
            config=file,
            env={"NOTIFY_SOCKET": str(manager.path)},
        ) as daemon:
            await manager.told("READY=1")
            before = await record()
            manager.forget()
            file.write_text("weight = 2.0\nzone = 'a'\ndata = '127.0.0.1:1'\n[labels]\nrack='9'\n")
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.logs("configuration reloaded, changed: labels, zone, weight")
            for line in ("RELOADING=1", "READY=1", "STATUS=configuration reloaded"):
                await manager.told(line)
            async with asyncio.timeout(WAIT_S):
                while (after := await record()).weight != 2.0:
                    await asyncio.sleep(0.01)
            assert (after.zone, dict(after.labels)) == ("a", {"rack": "9"})
            assert after.incarnation == before.incarnation

            file.write_text("wieght = 3.0\n")
            daemon.process.send_signal(signal.SIGHUP)
            await daemon.logs("the configuration stays as it was")
            assert "did you mean weight?" in daemon.log()
            assert (await record()).weight == 2.0
    await store.delete_prefix(keys.root)


async def start_endless_job(url: str, script: Path) -> None:
    async with Api(url) as api:
        await api.submit(answers.Submission(argv=(str(script),), cwd="/", start_workers=1))


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
