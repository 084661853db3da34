"""A worker's word with its daemon: who it is, the job's model and plan, and when to leave."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeVar

from elasticps.core.blocks import Model
from elasticps.core.ids import BlockId, ServerId
from elasticps.errors import JobFailed, PeerUnavailable, UsageError
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import (
    Access,
    Control,
    Describe,
    Finished,
    JobInfo,
    PlanRow,
    PlanUpdate,
    Prefer,
    Progress,
    RecordedSpans,
    RecordSpans,
    Rejected,
    Retire,
    Servers,
    Welcome,
    WorkerHello,
)
from elasticps.wire.pool import addresses_of
from elasticps.wire.spans import Spans
from elasticps.wire.transports import ALL
from elasticps.worker.untrained import check_untrained

CONNECT_TIMEOUT_S = 10.0

Found = TypeVar("Found")


class Agent:
    """The control channel to the daemon, and the latest of all that it said.

    ``host`` is where other machines reach this one, ``directory`` the one of the daemon's sockets.
    ``transports`` are those by which shard servers may be reached.
    """

    def __init__(self, spans: Spans | None = None, transports: Collection[str] = ALL) -> None:
        self.spans = spans or Spans()
        self.on_record: Callable[[RecordSpans], None] = self._nothing_recorded
        self.welcome: Welcome | None = None
        self.access: Access | None = None
        self.job: JobInfo | None = None
        self.retiring: str | None = None
        self.on_servers: Callable[[], None] = lambda: None
        self.on_plan: Callable[[PlanUpdate], None] = lambda _: None
        self.host = "127.0.0.1"
        self.directory = Path(tempfile.gettempdir())
        self.transports = transports
        self._connection: Connection | None = None
        self._closed = False
        self._rejection: str | None = None
        self._rows: dict[BlockId, PlanRow] = {}
        self._addresses: dict[ServerId, Address] = {}
        self._changed = asyncio.Event()

    async def connect(self, address: Address, uid: str) -> Welcome:
        """Say hello and wait for the daemon's answer. Raises PeerUnavailable."""
        self.directory = Path(address.path).parent if address.path else self.directory
        end = ControlEnd(self._on_message, self._on_closed)
        self._connection = await connect(address, timeout_s=CONNECT_TIMEOUT_S, dispatcher=end)
        tell(self._connection, WorkerHello(uid))
        try:
            return await self.until(lambda: self.welcome, CONNECT_TIMEOUT_S)
        except TimeoutError:
            raise PeerUnavailable(
                "the daemon gave no welcome in time",
                where=str(address),
                limit=f"{CONNECT_TIMEOUT_S} s",
            ) from None

    async def describe(self, model: Model) -> None:
        """Tell the model to the job; returns once the job has one, equal to this.

        Raises UsageError when the job's other workers described another.
        """
        self._tell(Describe(model))
        known = await self.until(lambda: self.job.model if self.job else None, None)
        check_untrained(known, model)
        if not known.alike(model):
            raise UsageError(
                "this worker's model or optimizer differs from that of the job's first worker",
                field=_first_difference(known, model),
                hint="every worker must build the same model with the same options",
            )

    def progress(self, progress: Progress) -> None:
        self._tell(progress)

    def prefer(self, prefer: Prefer) -> None:
        self._tell(prefer)

    def finished(self, finished: Finished) -> None:
        self._tell(finished)

    def recorded(self, part: RecordedSpans) -> None:
        self._tell(part)

    def _nothing_recorded(self, asked: RecordSpans) -> None:
        self._tell(RecordedSpans(asked.job, (), 0, last=True))

    def current_access(self) -> Access:
        """The newest; only for who was welcomed with one."""
        assert self.access is not None
        return self.access

    def row(self, block: BlockId) -> PlanRow | None:
        return self._rows.get(block)

    def address(self, server: ServerId) -> Address | None:
        return self._addresses.get(server)

    @property
    def has_near_servers(self) -> bool:
        """Is a shard server of this machine known?"""
        return any(address.transport == "unix" for address in self._addresses.values())

    async def until(self, found: Callable[[], Found | None], timeout_s: float | None) -> Found:
        """Wait until ``found`` gives something; it is asked again whenever the daemon speaks.

        Raises TimeoutError, PeerUnavailable when the daemon is gone, JobFailed when the daemon
        rejected what this worker asked for.
        """
        result = self._if_there(found)  # mostly it is, and each request asks
        if result:
            return result
        async with asyncio.timeout(timeout_s):
            while True:
                self._changed.clear()
                await self._changed.wait()
                result = self._if_there(found)
                if result:
                    return result

    def _if_there(self, found: Callable[[], Found | None]) -> Found | None:
        if self._rejection is not None:
            raise JobFailed(self._rejection)
        result = found()
        if not result and self._closed:
            raise PeerUnavailable("the daemon is gone")
        return result

    async def aclose(self) -> None:
        if self._connection is not None:
            await self._connection.aclose()

    def _tell(self, message: Control) -> None:
        if self._connection is None:
            raise PeerUnavailable("not connected to a daemon")
        tell(self._connection, message)

    def _on_message(self, conn: Connection, message: Control) -> None:
        match message:
            case Welcome():
                self.welcome = message
                self.access = message.access
            case Access():
                self.access = message
            case JobInfo():
                self.job = message
            case PlanUpdate():
                self._rows.update((row.block, row) for row in message.rows)
                self.on_plan(message)
            case Servers():
                self._addresses = addresses_of(message, self.transports)
                self.host = _host_of(message) or self.host
                self.on_servers()
            case Retire():
                self.retiring = message.reason
            case RecordSpans():
                self.on_record(message)
            case Rejected():
                self._rejection = message.reason
        self._changed.set()

    def _on_closed(self, conn: Connection) -> None:
        self._closed = True
        self._changed.set()


def _host_of(servers: Servers) -> str:
    """Where this machine's shard server listens for others, if there is one."""
    hosts = [
        Address.parse(each.tcp).host for each in servers.servers if each.server in servers.local
    ]
    return hosts[0] if hosts else ""


def _first_difference(known: Model, model: Model) -> str:
    """Where two models part, for the error that says so."""
    for field in ("optimizer", "options", "groups", "elementwise", "block_bytes"):
        if getattr(known, field) != getattr(model, field):
            return f"{field}: {getattr(known, field)} there, {getattr(model, field)} here"
    for ours, theirs in zip(model.parameters, known.parameters, strict=False):
        if ours != theirs:
            return f"parameters: {theirs} there, {ours} here"
    return f"parameters: {len(known.parameters)} there, {len(model.parameters)} here"
