"""Real etcd servers that tests may kill, freeze and start again, alone or three together."""

from __future__ import annotations

import asyncio
import random
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio
from aetcd import rpc

from elasticps.store import Store, StoreConfig
from elasticps.store.embedded import ending_with_parent, find_etcd

READY_S = 60.0
PORT_ATTEMPTS = 5
SINGLE_TIMING = ("--heartbeat-interval=20", "--election-timeout=200")
CLUSTER_TIMING = ("--heartbeat-interval=50", "--election-timeout=500")
DURABLE = "--unsafe-no-fsync=false"
"""A flag for one whose fsyncs matter: the others never wait for the disk."""


@cache
def etcd_path() -> Path:
    return find_etcd().path


class PortTaken(Exception):
    pass


class EtcdServer:
    """One etcd with its own ports and data directory, which it keeps over kills and restarts."""

    def __init__(
        self,
        directory: Path,
        *,
        flags: Sequence[str] = SINGLE_TIMING,
        name: str = "one",
        peers: str | None = None,
        ports: tuple[int, int, int] | None = None,
        scheme: str = "http",
    ) -> None:
        self.client_port, self.peer_port, self.metrics_port = ports or free_ports(3)
        self.directory = directory
        self.name = name
        self.endpoint = f"{scheme}://127.0.0.1:{self.client_port}"
        self._peers = peers or f"{name}=http://127.0.0.1:{self.peer_port}"
        self._flags = tuple(flags)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        assert not self.running
        peer = f"http://127.0.0.1:{self.peer_port}"
        command = [
            str(etcd_path()),
            f"--name={self.name}",
            f"--data-dir={self.directory / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster={self._peers}",
            f"--listen-metrics-urls=http://127.0.0.1:{self.metrics_port}",
            "--log-level=warn",
            "--unsafe-no-fsync",
            *self._flags,
        ]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                ending_with_parent(*command), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def wait_ready(self) -> None:
        """Wait until etcd serves, with a leader. Blocks: in a test, await ``ready`` instead."""
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline:
            if not self.running:
                log = (self.directory / "log").read_text(errors="replace")
                error = PortTaken if "address already in use" in log else RuntimeError
                raise error(log[-2000:])
            try:
                with urllib.request.urlopen(
                    f"http://127.0.0.1:{self.metrics_port}/health", timeout=1
                ) as answer:
                    if b"true" in answer.read():
                        return
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.02)
        raise TimeoutError(f"etcd is not ready after {READY_S} s")

    async def ready(self) -> None:
        await asyncio.to_thread(self.wait_ready)

    def kill(self) -> None:
        """SIGKILL, also while it is paused."""
        self._end(signal.SIGKILL)

    def terminate(self) -> None:
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """SIGSTOP; returns when no thread of it runs any more."""
        self._signal(signal.SIGSTOP)
        assert self._process is not None
        threads = Path(f"/proc/{self._process.pid}/task")
        while any(_state(thread) != "T" for thread in threads.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Kill it if it runs, start it with the same ports and data, wait until it serves."""
        self.kill()
        self.start()
        await self.ready()

    def back_up(self, copy: Path) -> None:
        """Copy its data, all of a member that was killed, to a directory that is not there yet."""
        assert not self.running
        shutil.copytree(self.directory / "data", copy)

    def put_back(self, copy: Path) -> None:
        """Replace its data, while it does not run: what it has acknowledged since is lost."""
        assert not self.running
        shutil.rmtree(self.directory / "data")
        shutil.copytree(copy, self.directory / "data")

    def config(self, **settings: Any) -> StoreConfig:
        return StoreConfig(endpoints=(self.endpoint,), **settings)

    def _end(self, number: signal.Signals) -> None:
        if self.running:
            self._signal(number)
        if self._process is not None:
            self._process.wait(timeout=30)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


class EtcdCluster:
    """Three members that elect a leader among themselves."""

    def __init__(self, members: Sequence[EtcdServer]) -> None:
        self.members = tuple(members)

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(member.endpoint for member in self.members)

    def config(self, *, first: EtcdServer | None = None, **settings: Any) -> StoreConfig:
        endpoints = sorted(
            self.endpoints, key=lambda endpoint: first is not None and endpoint != first.endpoint
        )
        return StoreConfig(endpoints=tuple(endpoints), **settings)

    def heal(self) -> None:
        """Every member runs and serves again."""
        for member in self.members:
            if member.running:
                member.resume()
            else:
                member.start()
        for member in self.members:
            member.wait_ready()

    async def leader(self) -> EtcdServer:
        for member in self.members:
            metrics = await asyncio.to_thread(
                _read, f"http://127.0.0.1:{member.metrics_port}/metrics"
            )
            if re.search(r"^etcd_server_is_leader 1$", metrics, re.MULTILINE):
                return member
        raise AssertionError("there is no leader")


def _state(thread: Path) -> str:
    return (thread / "stat").read_text().rpartition(")")[2].split()[0]


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def free_ports(count: int) -> tuple[int, ...]:
    """Free ports outside the ephemeral range, where no one's outgoing connection takes them."""
    found: set[int] = set()
    while len(found) < count:
        port = random.randrange(20_000, 32_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found.add(port)
    return tuple(found)


def started_server(stack: ExitStack, directory: Path, **settings: Any) -> EtcdServer:
    """A ready server that ends with ``stack``; takes other ports if someone else took these."""
    for attempt in range(PORT_ATTEMPTS):
        server = stack.enter_context(EtcdServer(directory / str(attempt), **settings))
        try:
            server.wait_ready()
        except PortTaken:
            continue
        return server
    raise PortTaken(f"in {PORT_ATTEMPTS} attempts")


def started_cluster(stack: ExitStack, directory: Path, *flags: str) -> EtcdCluster:
    """Three members, ready, that end with ``stack``; ``flags`` are added to each one's."""
    for attempt in range(PORT_ATTEMPTS):
        names = ("one", "two", "three")
        ports = free_ports(9)
        peers = ",".join(
            f"{name}=http://127.0.0.1:{port}" for name, port in zip(names, ports[1::3], strict=True)
        )
        members = [
            stack.enter_context(
                EtcdServer(
                    directory / str(attempt) / name,
                    flags=(*CLUSTER_TIMING, *flags),
                    name=name,
                    peers=peers,
                    ports=(ports[3 * n], ports[3 * n + 1], ports[3 * n + 2]),
                )
            )
            for n, name in enumerate(names)
        ]
        try:
            for member in members:
                member.wait_ready()
        except PortTaken:
            for member in members:
                member.kill()
            continue
        return EtcdCluster(members)
    raise PortTaken(f"in {PORT_ATTEMPTS} attempts")


async def compact(store: Store, revision: int) -> None:
    request = rpc.CompactionRequest(revision=revision, physical=True)
    await store.endpoints.call(lambda link: link.kv.Compact, request)


async def alarm(store: Store, action: int) -> None:
    """Raise the alarm that etcd has no space, or take it back. ``action`` is an AlarmRequest's."""
    request = rpc.AlarmRequest(action=action, alarm=rpc.NOSPACE)
    await store.endpoints.call(lambda link: link.maintenance.Alarm, request)


async def first_endpoint_answers(client: Store) -> int:
    """Make the first endpoint the store's current one; returns etcd's revision."""
    links = client.endpoints._links
    while True:
        status = await client.status()
        if client.endpoints._current == 0:
            return status.revision
        client.endpoints.leave(links[client.endpoints._current])
        await asyncio.sleep(0.01)


@pytest.fixture
def etcd_server(tmp_path: Path) -> Iterator[EtcdServer]:
    """An etcd of the test's own, to kill, freeze and start again."""
    with ExitStack() as stack:
        yield started_server(stack, tmp_path / "etcd")
    shutil.rmtree(tmp_path / "etcd")


@pytest.fixture(scope="module")
def started_members(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    directory = tmp_path_factory.mktemp("etcd-cluster")
    with ExitStack() as stack:
        yield started_cluster(stack, directory)
    shutil.rmtree(directory)


@pytest.fixture
def etcd_cluster(started_members: EtcdCluster) -> EtcdCluster:
    """Three members, all of them well, that the module's tests may kill and freeze."""
    started_members.heal()
    return started_members


@pytest.fixture(scope="session")
def shared_etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    """An etcd for all tests that leave it running and use keys of their own."""
    directory = tmp_path_factory.mktemp("shared-etcd")
    with ExitStack() as stack:
        yield started_server(stack, directory)
    shutil.rmtree(directory)


@pytest_asyncio.fixture
async def store(shared_etcd: EtcdServer) -> AsyncIterator[Store]:
    """A store on the shared etcd, which the test finds empty."""
    async with Store(shared_etcd.config()) as store:
        await store.delete_prefix("/")
        yield store
