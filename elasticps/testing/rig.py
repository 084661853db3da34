"""A cluster in one process: real shard servers on real sockets; the test is daemon and leader.

No etcd and no processes: ``Rig`` holds the job's model, its workers and its plan, moves the plan on
with the real planner from what the servers promise, and tells everybody, as daemons would.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Self, cast

import uvloop

from elasticps.core.audit import Verdict
from elasticps.core.blocks import LEDGER_BYTES, Model, partition
from elasticps.core.chosen import DEFAULT_STRATEGY
from elasticps.core.ids import (
    LEDGER,
    BlockId,
    JobName,
    NodeId,
    PlanEpoch,
    ServerId,
    WorkerId,
    server_of,
)
from elasticps.core.ledger import Ledger
from elasticps.core.placement import Site
from elasticps.core.plan import Entry
from elasticps.core.planner import first_plan, next_plan
from elasticps.errors import PeerUnavailable
from elasticps.server.ledger_host import LedgerHost
from elasticps.testing.members import Blueprint, Member, together
from elasticps.testing.rig_server import CLUSTER, JOB, Child, Lag, RigServer, serve
from elasticps.testing.waiting import eventually, open_fds
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import (
    AliveWorkers,
    Control,
    Describe,
    Finished,
    JobInfo,
    PlanRow,
    PlanUpdate,
    Progress,
    Retire,
    Servers,
    ServeUntil,
    Welcome,
    WorkerHello,
)
from elasticps.wire.listener import listen
from elasticps.worker.join import AGENT_VARIABLE, WORKER_VARIABLE

LEASE_S = 3600.0


class Rig:
    """``async with Rig(servers=2) as rig``: on leaving, nothing may have leaked or gone wrong.

    ``job``: what else the job's ``JobInfo`` says, such as its consistency.
    """

    def __init__(
        self,
        servers: int = 2,
        *,
        start_workers: int = 1,
        replicas: int = 1,
        local: bool = True,
        audit: bool = False,
        lag: Lag = lambda: 0.0,
        strategy: str = "data-parallel",
        **job: Any,
    ) -> None:
        self.servers: dict[ServerId, RigServer] = {}
        self.sites: list[Site] = []
        self.entries: dict[BlockId, Entry] = {}
        self.model: Model | None = None
        self.alive: list[WorkerId] = []
        self.revision = int(JOB)
        self.accidents: list[dict[str, Any]] = []
        self.leading = True
        self._to_lead = False
        self.progress: dict[str, Progress] = {}
        self.finished: dict[str, Finished] = {}
        self._sizes: list[int] = []
        self._first_servers = servers
        self._start_workers = start_workers
        self._replicas = replicas
        self._local = local
        self._audit = audit
        self._job = {"strategy": strategy, **job}
        self._lag = lag
        self._pinned: dict[BlockId, tuple[ServerId, ...]] = {}
        self._children: dict[object, Child] = {}
        self._members: list[Member] = []
        self._runs: dict[Connection, tuple[str, WorkerId]] = {}
        self._tasks = asyncio.TaskGroup()
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: self.accidents.append(context))
        uvloop.new_event_loop().close()  # a process's first one opens descriptors that stay
        self._fds, self._task_count = open_fds(), len(asyncio.all_tasks())
        directory = tempfile.TemporaryDirectory(prefix="rig")
        self._directory = Path(self._stack.enter_context(directory))
        await self._stack.enter_async_context(self._tasks)
        self._stack.push_async_callback(self._close)
        control = Address.unix(self._directory / "control.sock")
        end = ControlEnd(self._on_message, self._on_closed)
        self.control = await self._stack.enter_async_context(listen(control, lambda _: end))
        for _ in range(self._first_servers):
            await self.start_server()
        return self

    async def __aexit__(self, *error: object) -> None:
        try:
            await self._stack.__aexit__(*cast("tuple[None, None, None]", error))
        except BaseExceptionGroup as group:
            if len(group.exceptions) > 1:
                raise
            raise group.exceptions[0] from None
        asyncio.get_running_loop().set_exception_handler(None)
        if error[0] is None:
            assert self.accidents == []
            await eventually(self._is_clean)

    def _is_clean(self) -> bool:
        # Fewer are well too: another rig of this process may have had more of them then.
        return open_fds() <= self._fds and len(asyncio.all_tasks()) <= self._task_count

    async def _close(self) -> None:
        for member in self._members:
            await member.aclose()
        for child in self._children.values():
            child.stop()
        for server in self.servers.values():
            await server.aclose()

    # -- servers --------------------------------------------------------------------------------

    async def start_server(self, *, site: bool = True) -> ServerId:
        """Start a shard server; ``site``: it may hold blocks from now on."""
        self.revision += 1
        me = server_of(NodeId(f"node{self.revision}"), f"{self.revision:x}")
        started: asyncio.Future[RigServer] = asyncio.get_running_loop().create_future()
        life = serve(me, self._directory, self._lag, started, self._lead_soon)
        self._tasks.create_task(life)
        made = await started
        self.servers[made.id] = made
        self._children[made.id] = made.child
        made.child.tell(ServeUntil(time.monotonic() + LEASE_S))
        self._tell_all(self._servers_message())
        self._introduce_job(made.child)
        made.child.tell(self._alive_message())
        if site:
            self.sites.append(made.site)
            self.lead()
        return made.id

    async def kill_server(self, server: ServerId) -> None:
        """As a killed process: its connections are reset, and everybody is told it is gone."""
        dead = self.servers.pop(server)
        self.sites = [site for site in self.sites if site.server != server]
        dead.cut()
        self._children.pop(server)
        await dead.aclose()
        self._tell_all(self._servers_message())
        self.lead()

    # -- the leader's part ----------------------------------------------------------------------

    def describe(self, model: Model) -> None:
        """The job's first worker has described its model: there is a plan to make."""
        if self.model is not None:
            return
        self.model = model
        self._sizes = [LEDGER_BYTES, *(block.nbytes for block in partition(model))]
        self._tell_all(self._job_message())
        self._write(first_plan(self._sizes, self.sites, self._replicas))

    def _lead_soon(self) -> None:
        """Lead once for all that happens now."""
        if not self._to_lead:
            self._to_lead = True
            asyncio.get_running_loop().call_soon(self.lead)

    def lead(self) -> None:
        """Write plans until there is nothing left to change; nothing while ``leading`` is false."""
        self._to_lead = False
        while self.leading and self.model is not None and (changed := self._changed()):
            self._write(changed)

    def _changed(self) -> list[Entry]:
        alive = set(self.servers)
        promises = [row for server in self.servers.values() for row in server.promises]
        groups: dict[tuple[ServerId, ...], list[Entry]] = {}
        for block, entry in self.entries.items():
            groups.setdefault(self._pinned.get(block, ()), []).append(entry)
        changed: list[Entry] = []
        for names, entries in groups.items():
            sites = [self.servers[name].site for name in names if name in self.servers]
            sizes = [self._sizes[entry.block] for entry in entries]
            replicas = len(sites) if names else self._replicas
            sites = sites if names else self.sites
            changed += next_plan(sizes, entries, sites, alive, promises, max(1, replicas)).changed
        return changed

    def _write(self, changed: Sequence[Entry]) -> None:
        """Every write is a revision, and that is the epoch of what it changed."""
        self.revision += 1
        for entry in changed:
            epoch = PlanEpoch(self.revision)
            self.entries[entry.block] = replace(entry, epoch=epoch, since=entry.since or epoch)
        self._tell_all(self._plan_message())

    def primary(self, block: BlockId) -> RigServer:
        return self.servers[self.entries[block].primary]

    @property
    def ledger(self) -> Any:
        """The ledger's state at its primary; one without members until there is a primary."""
        hosted = self.primary(LEDGER).replica(LEDGER)
        return hosted._ledger if isinstance(hosted, LedgerHost) else Ledger(start_workers=0)

    def pin(self, blocks: Iterable[BlockId], *servers: ServerId) -> None:
        """From now on these blocks belong on these servers."""
        self._pinned.update(dict.fromkeys(blocks, servers))
        self.lead()

    async def move(self, block: BlockId, *servers: ServerId) -> None:
        """Move a block to ``servers`` and wait until they are all that holds it."""
        self.pin([block], *servers)
        await eventually(lambda: self.is_at(block, *servers))

    async def move_all(self, *servers: ServerId) -> None:
        """Move every block, and the ledger, to ``servers``."""
        self.pin(self.entries, *servers)
        await eventually(lambda: all(self.is_at(block, *servers) for block in self.entries))

    def is_at(self, block: BlockId, *servers: ServerId) -> bool:
        entry = self.entries[block]
        return set(entry.holders) == set(servers) and not entry.learners

    # -- workers --------------------------------------------------------------------------------

    def worker(self, blueprint: Blueprint, *, seed: int = 0) -> Member:
        """A new worker, which has not joined yet."""
        member = Member(CLUSTER, self._job_message(), self._next_worker(), blueprint, seed)
        self._members.append(member)
        self._introduce(member.id, member.agent.hear)
        self.describe(blueprint.model)
        return member

    async def workers(self, count: int, blueprint: Blueprint) -> list[Member]:
        """New workers that have joined."""
        members = [self.worker(blueprint) for _ in range(count)]
        await together(*(member.join() for member in members))
        return members

    async def kill(self, member: Member) -> None:
        """A worker's process dies, and etcd notices."""
        await member.die()
        self.evict(member.id)

    def evict(self, worker: WorkerId) -> None:
        """etcd does not list the worker any more."""
        child = self._children.pop(worker, None)
        if child is not None:
            child.stop()
        if worker in self.alive:
            self.alive.remove(worker)
        self.revision += 1
        self._tell_alive()

    def _next_worker(self) -> WorkerId:
        self.revision += 1
        worker = WorkerId(self.revision)
        self.alive.append(worker)
        self._tell_alive()
        return worker

    def _introduce(self, worker: WorkerId, hear: Callable[[Control], None]) -> None:
        child = self._children[worker] = Child(hear, self._lag)
        child.tell(self._servers_message())
        self._introduce_job(child)

    # -- workers that call join(): the daemon's end of their control channel --------------------

    def environment(self, uid: str) -> dict[str, str]:
        """What a daemon sets for its worker ``uid``."""
        return {AGENT_VARIABLE: str(self.control.address), WORKER_VARIABLE: uid}

    def retire(self, uid: str) -> None:
        worker = next(worker for name, worker in self._runs.values() if name == uid)
        self._children[worker].tell(Retire("the test says so"))

    async def verdicts(self, workers: int) -> list[Verdict]:
        """What the first ``workers`` workers that end have found, once they have said so."""
        await eventually(lambda: len(self.finished) >= workers)
        verdicts = [finished.verdict for finished in self.finished.values()]
        assert None not in verdicts, "a worker has held nothing against what was applied"
        return [verdict for verdict in verdicts if verdict is not None]

    def _on_message(self, conn: Connection, message: Control) -> None:
        match message:
            case WorkerHello(uid=uid):
                worker = self._next_worker()
                self._runs[conn] = uid, worker
                tell(conn, self._welcome(worker))
                self._introduce(worker, lambda message: _tell_if_open(conn, message))
            case Describe(model=model):
                self.describe(model)
            case Progress():
                self.progress[self._runs[conn][0]] = message
            case Finished():
                self.finished[self._runs[conn][0]] = message

    def _on_closed(self, conn: Connection) -> None:
        _, worker = self._runs.pop(conn, ("", None))
        if worker is not None:
            self.evict(worker)

    def _welcome(self, worker: WorkerId) -> Welcome:
        return Welcome(
            worker=worker,
            job=JOB,
            node=NodeId("here"),
            cluster=CLUSTER,
            audit=self._audit,
            block_bytes=4096,
        )

    # -- what daemons tell ----------------------------------------------------------------------

    def _introduce_job(self, child: Child) -> None:
        child.tell(self._job_message())
        if self.entries:
            child.tell(self._plan_message())

    def _tell_all(self, message: Control) -> None:
        for child in self._children.values():
            child.tell(message)

    def _tell_alive(self) -> None:
        for server in self.servers.values():
            server.child.tell(self._alive_message())

    def _alive_message(self) -> AliveWorkers:
        return AliveWorkers(JOB, tuple(self.alive), self.revision)

    def _job_message(self) -> JobInfo:
        return JobInfo(
            job=JOB,
            name=JobName("job"),
            start_workers=self._start_workers,
            model=self.model,
            **{"strategy": DEFAULT_STRATEGY, **self._job},
        )

    def _servers_message(self) -> Servers:
        records = tuple(server.record for server in self.servers.values())
        local = frozenset(self.servers) if self._local else frozenset[ServerId]()
        return Servers(records, local)

    def _plan_message(self) -> PlanUpdate:
        rows = tuple(
            PlanRow(
                entry.block,
                entry.primary,
                entry.in_sync,
                entry.learners,
                entry.epoch,
                entry.fresh,
                entry.since,
            )
            for _, entry in sorted(self.entries.items())
        )
        return PlanUpdate(JOB, rows)


def _tell_if_open(conn: Connection, message: Control) -> None:
    with contextlib.suppress(PeerUnavailable):
        tell(conn, message)
