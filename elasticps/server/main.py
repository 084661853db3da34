"""The shard server's process: ``python -m elasticps.server``, started by its daemon."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import secrets
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import torch
import uvloop

from elasticps.api.lazy_compiler import leave_compiler_unloaded
from elasticps.core.ids import NodeId, ServerId, server_of
from elasticps.core.records import ServerRecord
from elasticps.errors import AccessDenied, ElasticError, PeerUnavailable, WireError
from elasticps.security.tls import NodeTls, TlsFiles
from elasticps.server.admission import Admission, Open, Proven, ServerCredentials
from elasticps.server.compute import ComputeThreads
from elasticps.server.doing import Doing
from elasticps.server.heap import share_one_heap
from elasticps.server.makes import made
from elasticps.server.session import Lease, Session
from elasticps.server.table import Table
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import (
    AliveWorkers,
    Control,
    DropJob,
    JobInfo,
    MakePlugins,
    PlanUpdate,
    Promises,
    RecordSpans,
    ServerHello,
    Servers,
    ServeUntil,
    Stop,
)
from elasticps.wire.listener import Listener, listen
from elasticps.wire.pool import ConnectionPool, addresses_of
from elasticps.wire.region_socket import RegionSocket

log = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 5.0
GARBAGE_THRESHOLDS = (20_000, 20, 50)
"""Reference counts free what a round leaves; looking for cycles was a tenth of a step's time."""
LOAD_PERIOD_S = 1.0
LOAD_SHARE = 0.01
"""Of the server's time, what telling its load may take where it holds very many blocks."""
MAX_LOAD_PERIOD_S = 5.0
"""Who says nothing for long counts as stuck."""
MAX_PROMISES_QUEUED = 1024


class ShardServer:
    """Hosts what the daemon's messages say, until the daemon says Stop or is gone."""

    def __init__(
        self,
        cluster: str,
        me: ServerId,
        tasks: asyncio.TaskGroup,
        tls: NodeTls | None = None,
        threads: ComputeThreads | None = None,
        doing: Doing | None = None,
    ) -> None:
        self.lease = Lease()
        self.stopped = asyncio.Event()
        self._tasks = tasks
        self.listeners: tuple[Listener, ...] = ()
        self.promises: asyncio.Queue[Promises] = asyncio.Queue(MAX_PROMISES_QUEUED)
        self._addresses: dict[ServerId, Address] = {}
        self.peers: ConnectionPool[ServerId] = ConnectionPool(
            cluster,
            me,
            lambda server: self._addresses.get(server),
            ServerCredentials(tls, cluster, me) if tls else None,
        )
        self.table = Table(me, tasks, self.peers, self.promises, threads, doing)

    def on_message(self, conn: Connection, message: Control) -> None:
        match message:
            case ServeUntil():
                self.lease.deadline = message.deadline
            case Servers():
                self._addresses = addresses_of(message)
                self.peers.forget_unlisted()
            case JobInfo() | PlanUpdate() | AliveWorkers() | DropJob():
                self._of_a_job(message)
            case RecordSpans():
                for part in self.table.record_spans(message):
                    tell(conn, part)
            case MakePlugins():
                self._tasks.create_task(_make(conn, message))
            case Stop():
                log.info("stopping: %s", message.reason)
                self.stopped.set()
            case _:
                log.error("a %s is not for a shard server", type(message).__name__)

    def _of_a_job(self, message: JobInfo | PlanUpdate | AliveWorkers | DropJob) -> None:
        match message:
            case JobInfo():
                self.table.job_info(message)
            case PlanUpdate():
                self.table.plan_update(message)
            case AliveWorkers():
                self.table.alive_workers(message)
            case DropJob():
                self.table.drop_job(message.job)

    def on_closed(self, conn: Connection) -> None:
        if not self.stopped.is_set():
            log.error("the daemon is gone")
            self.stopped.set()

    async def report(self, daemon: Connection) -> None:
        """Send promises as they change, and the load once a second or less often where that costs
        much; let go of idle memory then."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._report_promises(daemon))
            tasks.create_task(self._report_load(daemon))

    @property
    def wire_errors(self) -> int:
        """How many connections it has closed for what they sent."""
        return sum(listener.wire_errors for listener in self.listeners)

    async def _report_promises(self, daemon: Connection) -> None:
        while True:
            tell(daemon, await self.promises.get())
            await daemon.writable()

    async def _report_load(self, daemon: Connection) -> None:
        while True:
            load, spent_s = await self.table.load_in_turns()
            tell(daemon, msgspec.structs.replace(load, wire_errors=self.wire_errors))
            self.table.landing.trim()
            pause_s = min(max(LOAD_PERIOD_S, spent_s / LOAD_SHARE), MAX_LOAD_PERIOD_S)
            slept_s = time.monotonic()
            await asyncio.sleep(pause_s)
            self.table.tallies.loop_lag_s = max(0.0, time.monotonic() - slept_s - pause_s)


async def _make(daemon: Connection, asked: MakePlugins) -> None:
    """Away from the loop, which serves meanwhile."""
    said = await asyncio.to_thread(made, asked)
    with contextlib.suppress(PeerUnavailable):  # it is gone, and this server ends
        tell(daemon, said)


async def serve(options: argparse.Namespace) -> None:
    """Listen, say hello to the daemon, and serve until told to stop."""
    me = server_of(NodeId(options.node), secrets.token_hex(4))
    tls = _tls(options)
    threads = ComputeThreads(options.threads)
    try:
        async with asyncio.TaskGroup() as tasks:
            doing = Doing(Path(options.doing) if options.doing else None)
            server = ShardServer(options.cluster, me, tasks, tls, threads, doing)
            stop_on_signals(server.stopped)
            try:
                await _serve(options, me, server, tls)
            finally:
                server.table.close()
            raise _Stopped
    except* _Stopped:
        log.info("stopped")
    finally:
        threads.close()


class _Stopped(Exception):
    """Ends the task group: the server was told to stop."""


def _tls(options: argparse.Namespace) -> NodeTls | None:
    if not options.tls_key:
        return None
    ca, cert, key = (Path(path) for path in (options.tls_ca, options.tls_cert, options.tls_key))
    return NodeTls(TlsFiles(ca=ca, cert=cert, key=key))


async def _serve(
    options: argparse.Namespace, me: ServerId, server: ShardServer, tls: NodeTls | None
) -> None:
    admission: Admission = Proven(tls.files) if tls else Open()
    context = tls.server() if tls else None

    def session(_: Connection) -> Session:
        return Session(options.cluster, server.table, server.lease, admission, passing)

    tcp_address, unix_address = Address.parse(options.tcp), Address.parse(options.unix)
    control = ControlEnd(server.on_message, server.on_closed)
    traffic = server.peers.traffic
    passing = RegionSocket(unix_address, shared=options.shared, traffic=traffic.by_transport["shm"])
    over_tcp, over_unix = traffic.of(tcp_address, tls=bool(tls)), traffic.of(unix_address)
    async with (
        passing,
        listen(tcp_address, session, on_error=_note, tls=context, traffic=over_tcp) as tcp,
        listen(
            unix_address, session, on_error=_note, shared=options.shared, traffic=over_unix
        ) as unix,
        await connect(
            Address.parse(options.control), timeout_s=CONNECT_TIMEOUT_S, dispatcher=control
        ) as daemon,
    ):
        server.listeners = (tcp, unix)
        record = ServerRecord(server=me, tcp=str(tcp.address), unix=str(unix.address))
        tell(daemon, ServerHello(record))
        await first_of(server.stopped.wait(), server.report(daemon))
    await server.peers.aclose()


def _note(connection: Connection, error: ElasticError) -> None:
    if isinstance(error, AccessDenied):
        log.warning("refused: peer=%s %s", connection.where, error)
    elif isinstance(error, WireError):
        log.warning("closed for what it sent: peer=%s %s", connection.where, error)


async def first_of(*waits: Coroutine[Any, Any, Any]) -> None:
    """Wait until one is done, cancel the others, and raise what it raised."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def stop_on_signals(stopped: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)


def main() -> None:
    parser = argparse.ArgumentParser(prog="elasticps.server", description=__doc__)
    for name in ("control", "cluster", "node", "tcp", "unix"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("tls-ca", "tls-cert", "tls-key", "cores", "doing"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--shared", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    if options.cores:  # before memory is taken, which then is near
        os.sched_setaffinity(0, {int(core) for core in options.cores.split(",")})
    leave_compiler_unloaded()
    share_one_heap()
    gc.set_threshold(*GARBAGE_THRESHOLDS)
    # A kernel runs on the thread that calls it: ComputeThreads says how many there are.
    torch.set_num_threads(1)
    uvloop.run(serve(options))
