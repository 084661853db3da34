"""The daemon's end of the control channels: what each child must know, sent as it changes."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Protocol

from elasticps.core.ids import JobKey, JobName
from elasticps.core.plan import Entry
from elasticps.core.records import ServerRecord
from elasticps.daemon.rehearsals import Rehearsals
from elasticps.daemon.view import ClusterView, JobView, local_servers
from elasticps.errors import ElasticError, PeerUnavailable, WireError
from elasticps.wire.connection import Connection
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import (
    Access,
    AliveWorkers,
    Control,
    Describe,
    DropJob,
    Finished,
    JobInfo,
    PlanRow,
    PlanUpdate,
    PluginsMade,
    Prefer,
    Progress,
    Promises,
    RecordedSpans,
    Retire,
    ServerHello,
    ServerLoad,
    Servers,
    ServeUntil,
    Welcome,
    WorkerHello,
)
from elasticps.wire.peer_process import PeerProcess

log = logging.getLogger(__name__)


class Children(Protocol):
    """Who acts on what children say."""

    def server_said_hello(self, record: ServerRecord, process: PeerProcess) -> str | None: ...

    def server_gone(self, child: str) -> None: ...

    def promised(self, child: str, promises: Promises) -> None: ...

    def loaded(self, child: str, load: ServerLoad) -> None: ...

    def plugins_made(self, said: PluginsMade) -> None: ...

    def welcome(self, uid: str, process: PeerProcess) -> Welcome | None: ...

    def access_of(self, uid: str) -> Access | None: ...

    def retired(self, uid: str) -> Retire | None: ...

    def described(self, uid: str, describe: Describe) -> None: ...

    def recorded(self, uid: str, part: RecordedSpans) -> None: ...

    def progressed(self, uid: str, progress: Progress) -> None: ...

    def preferred(self, uid: str, prefer: Prefer) -> None: ...

    def finished(self, uid: str, finished: Finished) -> None: ...

    def worker_gone(self, uid: str) -> None: ...


@dataclass(slots=True, eq=False)
class _Link:
    """One child's channel and what it has been told. ``job`` None: a shard server, all jobs.

    ``uid`` is a worker's, or the name of a shard server's process.
    """

    connection: Connection
    uid: str
    job: JobKey | None
    servers: Servers | None = None
    jobs: dict[JobKey, JobInfo] = field(default_factory=dict)
    parts: dict[tuple[JobKey, int], int] = field(default_factory=dict)
    alive: dict[JobKey, tuple[int, ...]] = field(default_factory=dict)

    def tell(self, message: Control) -> None:
        try:
            tell(self.connection, message)
        except PeerUnavailable as error:
            # Its end is noticed by its supervisor; nothing is owed to a dead child.
            log.info("child %s: %s", self.uid, error)


class Links:
    """All control channels of one daemon (an ``on_connect`` for its control listener)."""

    def __init__(
        self, view: ClusterView, machine: str, children: Children, rehearsals: Rehearsals
    ) -> None:
        self._view = view
        self._machine = machine
        self._children = children
        self._rehearsals = rehearsals
        self._links: dict[Connection, _Link] = {}
        self._serve_until = 0.0

    def on_connect(self, conn: Connection) -> ControlEnd:
        return ControlEnd(self._on_message, self._on_closed)

    def lost(self, conn: Connection, error: ElasticError) -> None:
        """A channel ended in an error: told where what its child said was the cause."""
        if isinstance(error, WireError):
            log.warning("a child's channel is closed for what it sent: %s", error)

    def serve_until(self, deadline: float) -> None:
        """The node's lease holds until ``deadline`` (monotonic seconds)."""
        self._serve_until = deadline
        for link in self._server_links():
            link.tell(ServeUntil(deadline))

    def tell_worker(self, uid: str, message: Control) -> None:
        """Send to one worker, if it has said hello."""
        for link in self._links.values():
            if link.uid == uid and link.job is not None:
                link.tell(message)

    def tell_servers(self, message: Control) -> list[str]:
        """Send to all shard servers; the names of their processes."""
        servers = self._server_links()
        for link in servers:
            link.tell(message)
        return [link.uid for link in servers]

    def renew_access(self) -> None:
        """Give each worker a pass anew, before the one that it has is over."""
        for link in self._links.values():
            access = self._children.access_of(link.uid) if link.job is not None else None
            if access is not None:
                link.tell(access)

    def sync(self) -> None:
        """Tell every child what has changed in the view since it was last told."""
        self._rehearsals.keep_only({job.key for job in self._view.active_jobs})
        for link in self._links.values():
            self._sync(link)

    # -- what children say ----------------------------------------------------------------------

    def _on_message(self, conn: Connection, message: Control) -> None:
        link = self._links.get(conn)
        if link is None:
            self._hello(conn, message)
        elif link.job is None:
            self._from_server(link.uid, message)
        else:
            self._from_worker(link.uid, message)

    def _hello(self, conn: Connection, message: Control) -> None:
        if isinstance(message, ServerHello):
            child = self._children.server_said_hello(message.record, conn.peer_process())
            if child is None:
                log.error("a process says it is a shard server, which was not started here")
                conn.abort()
                return
            link = self._links[conn] = _Link(conn, child, None)
            link.tell(ServeUntil(self._serve_until))
            self._sync(link)
        elif isinstance(message, WorkerHello):
            welcome = self._children.welcome(message.uid, conn.peer_process())
            if welcome is None:
                log.error("a process says it is worker %s, which was not started here", message.uid)
                conn.abort()
                return
            link = self._links[conn] = _Link(conn, message.uid, welcome.job)
            link.tell(welcome)
            self._sync(link)
            retired = self._children.retired(message.uid)
            if retired is not None:
                link.tell(retired)
        else:
            log.error("a %s before hello on the control channel", type(message).__name__)
            conn.abort()

    def _from_server(self, child: str, message: Control) -> None:
        match message:
            case Promises():
                self._children.promised(child, message)
            case ServerLoad():
                self._children.loaded(child, message)
            case RecordedSpans():
                self._children.recorded(child, message)
            case PluginsMade():
                self._children.plugins_made(message)
            case _:
                log.error("a %s is not for a shard server to say", type(message).__name__)

    def _from_worker(self, uid: str, message: Control) -> None:
        match message:
            case Describe():
                self._children.described(uid, message)
            case Progress():
                self._children.progressed(uid, message)
            case Prefer():
                self._children.preferred(uid, message)
            case RecordedSpans():
                self._children.recorded(uid, message)
            case Finished():
                self._children.finished(uid, message)
            case _:
                log.error("a %s is not for a worker to say", type(message).__name__)

    def _on_closed(self, conn: Connection) -> None:
        link = self._links.pop(conn, None)
        if link is None:
            return
        if link.job is None:
            self._children.server_gone(link.uid)
        else:
            self._children.worker_gone(link.uid)

    # -- what children are told -----------------------------------------------------------------

    def _server_links(self) -> list[_Link]:
        return [link for link in self._links.values() if link.job is None]

    def _sync(self, link: _Link) -> None:
        servers = Servers(tuple(self._view.servers), local_servers(self._view, self._machine))
        if servers != link.servers:
            link.servers = servers
            link.tell(servers)
        active = {job.key: job for job in self._view.active_jobs}
        for key in [key for key in link.jobs if key not in active]:
            _forget(link, key)
        for job in active.values():
            refusal = self._refusal(link, job)
            if link.job in (None, job.key) and refusal is not None:
                _sync_job(link, job, refusal)
                if link.job is None:
                    self._sync_alive(link, job)

    def _refusal(self, link: _Link, job: JobView) -> str | None:
        """Why the shard server must not serve the job; None: it hears of it once that is known."""
        if link.job is not None or job.model is None or job.spec is None:
            return ""
        spec = job.spec
        return self._rehearsals.verdict(job.key, job.model, spec.codec, spec.data_policy)

    def _sync_alive(self, link: _Link, job: JobView) -> None:
        alive = tuple(life.worker for life in job.running)
        if link.alive.get(job.key) != alive:
            link.alive[job.key] = alive
            link.tell(AliveWorkers(job.key, alive, self._view.revision))


def _sync_job(link: _Link, job: JobView, refusal: str) -> None:
    spec = job.spec
    assert spec is not None
    info = JobInfo(
        job=job.key,
        name=JobName(job.name),
        identity=spec.identity,
        start_workers=spec.start_workers,
        strategy=spec.strategy,
        codec=spec.codec,
        model=job.model,
        consistency=spec.consistency,
        staleness=spec.staleness,
        backup_workers=spec.backup_workers,
        data_policy=spec.data_policy,
        min_insync=spec.min_insync,
        nonfinite=spec.nonfinite,
        refusal=refusal,
        checkpoint_dir=spec.checkpoint_dir,
        checkpoint_every=spec.checkpoint_every,
        checkpoint_keep=spec.checkpoint_keep,
        checkpoint_request=job.checkpoint_request,
        resume=spec.resume,
        resume_reset_optimizer=spec.resume_reset_optimizer,
    )
    if link.jobs.get(job.key) != info:
        link.jobs[job.key] = info
        link.tell(info)
    for index, part in job.parts.items():
        if link.parts.get((job.key, index)) != part.revision:
            link.parts[job.key, index] = part.revision
            link.tell(PlanUpdate(job.key, tuple(_row(entry) for entry in part.entries)))


def _forget(link: _Link, key: JobKey) -> None:
    del link.jobs[key]
    link.alive.pop(key, None)
    link.parts = {place: part for place, part in link.parts.items() if place[0] != key}
    if link.job is None:
        link.tell(DropJob(key))


def _row(entry: Entry) -> PlanRow:
    return PlanRow(
        entry.block,
        entry.primary,
        entry.in_sync,
        entry.learners,
        entry.epoch,
        entry.fresh,
        entry.since,
    )
