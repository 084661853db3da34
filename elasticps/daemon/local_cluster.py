"""A whole cluster on this machine: a real etcd and real daemons as child processes, on loopback."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Callable
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from elasticps.core.records import NodeRecord, decode
from elasticps.daemon.process import REAP
from elasticps.errors import ElasticError, StoreError, UsageError
from elasticps.store import Batch, EmbeddedEtcd, Keys, Snapshot, Store, StoreConfig, watch_prefix
from elasticps.wire.transports import TRANSPORTS_VARIABLE

log = logging.getLogger(__name__)

FIRST_HTTP_PORT = 7400
START_TIMEOUT_S = 60.0
KEPT_VARIABLES = frozenset({TRANSPORTS_VARIABLE, "ELASTICPS_THREADS_PER_SERVER"})
"""How bytes go and blocks are stepped, which whoever measures may choose."""
STOP_TIMEOUT_S = 10.0
LOG_TAIL_BYTES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where one node's daemon runs: the address that it listens at, what its command line is put
    behind (another network namespace, say), and options that replace the cluster's own.
    """

    host: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(slots=True)
class LocalNode:
    """One daemon process of a local cluster."""

    name: str
    process: asyncio.subprocess.Process
    log: Path
    http: str = ""


class LocalCluster:
    """``async with LocalCluster(nodes=3) as cluster``: daemons registered, API at ``cluster.api``.

    ``etcd`` None starts an embedded one; in another the cluster's keys are deleted at the end.
    ``cluster`` None makes up a name that no other has. ``directory`` None: temporary, removed at
    the end; logs are below it, by node. ``place`` says where a node runs. Every process ends with
    the block, and with this process if it is killed.
    """

    def __init__(
        self,
        *,
        nodes: int,
        workers_per_node: int = 1,
        etcd: StoreConfig | None = None,
        directory: Path | None = None,
        cluster: str | None = None,
        lease_ttl_s: int = 3,
        drain_timeout_s: float = 30.0,
        place: Callable[[str], Place] = lambda _: Place(),
    ) -> None:
        self.nodes: dict[str, LocalNode] = {}
        self.store: Store
        self.keys = Keys(cluster or f"local-{secrets.token_hex(4)}")
        self._count = nodes
        self._workers_per_node = workers_per_node
        self._etcd = etcd
        self._directory = directory
        self._lease_ttl_s = lease_ttl_s
        self._drain_timeout_s = drain_timeout_s
        self._place = place
        self._embedded: EmbeddedEtcd | None = None
        self._made = 0
        self._stack = AsyncExitStack()
        self._root: Path

    @property
    def api(self) -> str:
        """The URL of a daemon that lives."""
        for node in self.nodes.values():
            if node.process.returncode is None and node.http:
                return node.http
        raise UsageError("no daemon of the local cluster lives")

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._root = self._directory or Path(tempfile.mkdtemp(prefix="elasticps-"))
            if self._directory is None:
                stack.callback(shutil.rmtree, self._root, ignore_errors=True)
            lent = self._etcd is not None
            if self._etcd is None:
                etcd = self._embedded = await stack.enter_async_context(EmbeddedEtcd())
                self._etcd = StoreConfig(endpoints=(etcd.endpoint,))
            self.store = await stack.enter_async_context(Store(self._etcd))
            if lent:
                stack.push_async_callback(self._delete_keys)
            stack.push_async_callback(self._stop_all)
            await self._start_all()
            self._stack = stack.pop_all()
        return self

    async def _start_all(self) -> None:
        try:
            async with asyncio.TaskGroup() as starts:
                for _ in range(self._count):
                    starts.create_task(self.add_node())
        except BaseExceptionGroup as errors:
            # The first that did not start is the cause; the others were cancelled.
            raise errors.exceptions[0] from None

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stack.aclose()

    async def add_node(self, name: str | None = None) -> str:
        """Start one more daemon and wait until it is a member. Raises ElasticError if it ends.

        The first one takes the port that the command line asks by default, if that is free.
        """
        self._made += 1
        name = name or f"n{self._made}"
        ports = [0]
        if self._made == 1 and _is_free(FIRST_HTTP_PORT):
            # Another cluster may take the port before this one's daemon does: then any will do.
            ports = [FIRST_HTTP_PORT, 0]
        for port in ports:
            node = self.nodes[name] = await self._spawn(name, port)
            record = await self._registration(node)
            if record is not None:
                node.http = record.http
                return name
        raise ElasticError(f"the daemon ended at its start:\n{_tail(node.log)}", where=name)

    async def _registration(self, node: LocalNode) -> NodeRecord | None:
        """The node's record once it is a member; None if its daemon ended first."""
        registering = asyncio.create_task(self._registered(node.name))
        ending = asyncio.create_task(node.process.wait())
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await asyncio.wait({registering, ending}, return_when=asyncio.FIRST_COMPLETED)
            return registering.result() if registering.done() else None
        except TimeoutError:
            raise ElasticError(
                "the daemon did not register", where=node.name, limit=f"{START_TIMEOUT_S:g} s"
            ) from None
        finally:
            ending.cancel()
            registering.cancel()

    def kill(self, name: str) -> None:
        """SIGKILL a daemon: its shard server and workers die with it."""
        self.nodes[name].process.kill()

    async def wait(self, name: str) -> int:
        """The exit code of a daemon, once it has ended; negative: the signal that ended it."""
        return await self.nodes[name].process.wait()

    async def broken(self) -> str:
        """Wait until the cluster cannot go on, its etcd or its last daemon ended; says which."""
        daemons = asyncio.create_task(self._no_daemon_left())
        ends = {daemons: "the last daemon has ended"}
        if self._embedded is not None:
            ends[asyncio.create_task(self._embedded.ended())] = "etcd has ended"
        try:
            done, _ = await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            return ends[done.pop()]
        finally:
            for task in ends:
                task.cancel()

    async def _no_daemon_left(self) -> int:
        while living := [n for n in self.nodes.values() if n.process.returncode is None]:
            await living[0].process.wait()
        return 0

    async def changes(self, prefix: str) -> AsyncGenerator[Batch, None]:
        """What etcd holds below ``prefix``, and its changes."""
        async with aclosing(watch_prefix(self.store, prefix)) as batches:
            async for batch in batches:
                yield batch

    async def _registered(self, name: str) -> NodeRecord:
        key = self.keys.node(name)
        async with aclosing(self.changes(key)) as batches:
            async for batch in batches:
                items = (
                    batch.items
                    if isinstance(batch, Snapshot)
                    else [event.kv for event in batch.events if event.kv is not None]
                )
                for item in items:
                    if item.key == key:
                        return decode(item.value, NodeRecord, key)
        raise AssertionError("a watch does not end by itself")

    async def _spawn(self, name: str, port: int) -> LocalNode:
        home = self._root / name
        (home / "logs").mkdir(parents=True, exist_ok=True)
        log = home / "logs" / "daemon.log"
        assert self._etcd is not None
        place = self._place(name)
        arguments = {
            "config": os.devnull,  # not that of a daemon of this machine
            "node": name,
            "cluster": self.keys.cluster,
            "etcd": ",".join(self._etcd.endpoints),
            "http": f"{place.host}:{port}",
            "data": f"{place.host}:0",
            "workers": self._workers_per_node,
            "lease-ttl": self._lease_ttl_s,
            "drain-timeout": self._drain_timeout_s,
            "state-dir": home,
            "log-dir": home / "logs",
            "runtime-dir": home / "run",
        }
        options = [part for key, item in arguments.items() for part in (f"--{key}", str(item))]
        options += place.options
        command = [*place.prefix, sys.executable, "-P", "-m", "elasticps", "daemon", *options]
        with log.open("ab") as output:
            # A session of its own: Ctrl-C in a terminal is for the parent, which then stops this.
            process = await asyncio.create_subprocess_exec(
                *[sys.executable, "-I", "-S", REAP, str(os.getpid()), "--", *command],
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_plain_environment(),
                start_new_session=True,
            )
        return LocalNode(name, process, log)

    async def _delete_keys(self) -> None:
        try:
            await self.store.delete_prefix(self.keys.root)
        except StoreError as error:
            log.warning("the keys below %s stay in etcd: %s", self.keys.root, error)

    async def _stop_all(self) -> None:
        """Twice SIGTERM: leave at once, there is nobody left to take over."""
        living = [n.process for n in self.nodes.values() if n.process.returncode is None]
        for process in living:
            process.send_signal(signal.SIGTERM)
        waits = [asyncio.create_task(process.wait()) for process in living]
        if not waits:
            return
        await asyncio.wait(waits, timeout=1.0)
        for process in living:
            if process.returncode is None:
                process.send_signal(signal.SIGTERM)
        await asyncio.wait(waits, timeout=STOP_TIMEOUT_S)
        for process in living:
            if process.returncode is None:
                process.kill()
        await asyncio.wait(waits)


def _plain_environment() -> dict[str, str]:
    """This process's, less the settings of a daemon of this machine that is not meant here."""
    return {
        key: item
        for key, item in os.environ.items()
        if key in KEPT_VARIABLES or not key.startswith("ELASTICPS_")
    }


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _tail(log: Path) -> str:
    return log.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
