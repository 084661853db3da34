"""A simulated daemon: its lease, registration and view, and its children."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elasticps.core.ids import NodeId, ServerId, WorkerId, server_of
from elasticps.core.plan import Entry, decode_part
from elasticps.sim.clock import MS
from elasticps.sim.etcd import Compare, Etcd, Item, Put, Watch, alive_nodes
from elasticps.sim.leader import Leader
from elasticps.sim.links import Links
from elasticps.sim.network import LOCAL_DELAY
from elasticps.sim.process import Process
from elasticps.sim.reports import Reports
from elasticps.sim.server import Server
from elasticps.sim.worker import Worker

if TYPE_CHECKING:
    from elasticps.sim.world import World

RETRY = 15 * MS
START_DELAY = 20 * MS


class Daemon(Process):
    """One life of a node's daemon: ``daemon/membership.py``, ``links.py`` and ``workers.py``."""

    def __init__(self, world: World, node: NodeId, life: int) -> None:
        super().__init__(world.clock, f"daemon {node}/{life}", node)
        self.world = world
        self.view: dict[str, Item] = {}
        self.revision = 0
        self.servers: dict[ServerId, object] = {}
        """The registered servers, in the order of their nodes."""
        self.lease = 0
        self.deadline = 0
        self._claimed = 0
        """The revision of the registration: the server leads by no plan from before it."""
        self.server: Server | None = None
        self.workers: dict[str, Worker | None] = {}
        self._life = life
        self._servers = 0
        self._next_worker = 0
        self._starting = False
        self._registering = False
        self._record_revision = 0
        self._campaigning = False
        self._not_before = 0
        self._listed = 0
        """The lease under which the view has shown this node."""
        self.alive_workers: tuple[WorkerId, ...] = ()
        self._parts: tuple[int, tuple[Entry, ...]] = (0, ())
        self.reports = Reports(self)
        self.leader = Leader(self)
        self._links = Links(self)
        self._watch = Watch(self, self._mirror)

    @property
    def etcd(self) -> Etcd:
        return self.world.etcd

    def start(self) -> None:
        self._start_server()
        self.etcd.watch(self._watch)
        self._register()

    # -- membership -----------------------------------------------------------------------------

    def _register(self) -> None:
        if self._registering or self.lease:
            return
        self._registering = True
        asked_at = self.clock.now
        ttl = self.world.ttl
        key, value = f"nodes/{self.node}", self._record()

        def claim(etcd: Etcd) -> tuple[int, int]:
            held = etcd.items.get(key)
            if held is not None and held.value[0] != self._life:
                return 0, 0
            lease = etcd.grant(ttl)
            if held is not None:
                etcd.txn([], [Put(key, None)])
            etcd.txn([], [Put(key, value, lease)])
            self.world.leases[lease] = self.node
            return lease, etcd.items[key].created

        def done(answer: tuple[int, int]) -> None:
            lease, revision = answer
            self._registering = False
            if not lease or self.clock.now >= asked_at + ttl:
                self.later(RETRY, self._register)
                return
            self.lease, self._claimed = lease, revision
            self.clock.note(f"{self.name} registered lease {lease}")
            self._held_until(asked_at + ttl)
            self.later(ttl // 3, self._keep_alive, lease)
            self._record_changed()
            self.reports.registered()
            self._reconcile()
            self._campaign()

        def timed_out() -> None:
            self._registering = False
            self.later(RETRY, self._register)

        self.etcd.request(self, claim, done, timed_out)

    def _record(self) -> tuple[int, ServerId]:
        return (self._life, self.server.id if self.server else ServerId(""))

    def _record_changed(self) -> None:
        """The registration says which server lives; it is written until it is right.

        Each write replaces a known revision, so that one which comes late changes nothing.
        """
        lease, known = self.lease, self._record_revision
        if not lease:
            return
        key, value = f"nodes/{self.node}", self._record()

        def write(etcd: Etcd) -> tuple[bool, int]:
            held = etcd.items.get(key)
            if held is None or held.lease != lease:
                return True, 0
            if held.modified == known and held.value != value:
                etcd.txn([], [Put(key, value, lease)])
            return etcd.items[key].value == value, etcd.items[key].modified

        def done(answer: tuple[bool, int]) -> None:
            written, revision = answer
            self._record_revision = max(self._record_revision, revision)
            if not written:
                self._record_changed()

        self.etcd.request(self, write, done, lambda: self.later(RETRY, self._record_changed))

    def _keep_alive(self, lease: int) -> None:
        if lease != self.lease:
            return
        if self.clock.now >= self.deadline:
            self._lost_lease()
            return
        asked_at = self.clock.now

        def done(holds: bool) -> None:
            if lease != self.lease:
                return
            if holds:
                self._held_until(max(self.deadline, asked_at + self.world.ttl))
            else:
                self._lost_lease()

        self.etcd.request(self, lambda etcd: etcd.keep_alive(lease), done, lambda: None)
        self.later(self.world.ttl // 3, self._keep_alive, lease)

    def _held_until(self, deadline: int) -> None:
        self.deadline = deadline
        if self.server is not None and self.revision >= self._claimed:
            self.later(LOCAL_DELAY, self.server.run, self.server.serve_until, deadline)

    def _lost_lease(self) -> None:
        """The cluster has declared this node dead: no worker may live here; register anew."""
        self.clock.note(f"{self.name} lost its lease")
        self.lease = 0
        self._campaigning = False
        self.leader.depose()
        for worker in list(self.workers.values()):
            if worker is not None:
                self.world.kill(worker)
        self.workers.clear()
        self.reports.workers_gone()
        self.later(RETRY, self._register)

    # -- the view -------------------------------------------------------------------------------

    def _mirror(self, whole: bool, batch: list[tuple[str, Item | None]], revision: int) -> None:
        if whole:
            self.view = {}
        for key, item in batch:
            if item is None:
                self.view.pop(key, None)
            else:
                self.view[key] = item
        older, self.revision = self.revision, revision
        named = (self.view[f"nodes/{node}"].value[1] for node in alive_nodes(self.view))
        self.servers = {server: None for server in named if server}
        found = [item.created for key, item in self.view.items() if key.startswith("workers/")]
        self.alive_workers = tuple(WorkerId(created) for created in sorted(found))
        for child in [self.server, *self.workers.values()]:
            if child is not None:
                self._links.sync(child)
        if self.lease and older < self._claimed <= revision:
            self._held_until(self.deadline)
        own = self.view.get(f"nodes/{self.node}")
        listed = bool(self.lease) and own is not None and own.lease == self.lease
        if self._listed == self.lease and self.lease and not listed:
            self._lost_lease()
        self._listed = self.lease if listed else 0
        self._campaign()
        self._reconcile()
        self.leader.changed()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The plan as this daemon knows it."""
        item = self.view.get("plan")
        if item is None:
            return ()
        if self._parts[0] != item.modified:
            self._parts = (item.modified, decode_part(item.value, item.modified))
        return self._parts[1]

    @property
    def drained(self) -> bool:
        return f"drain/{self.node}" in self.view

    @property
    def finishing(self) -> bool:
        return "finishing" in self.view

    # -- children -------------------------------------------------------------------------------

    def _start_server(self) -> None:
        self._servers += 1
        server = Server(self.world, server_of(self.node, f"{self._life}-{self._servers}"), self)
        self.server = server
        self.world.network.servers[server.id] = server
        if self.revision >= self._claimed:
            server.serve_until(self.deadline)
        self.clock.note(f"{server.id} starts")
        self._links.sync(server)
        self._record_changed()

    def server_died(self) -> None:
        """Its channel closed: the cluster is told at once, and another is started."""
        if self.server is not None:
            self._links.gone(self.server)
        self.server = None
        self.reports.server_gone()
        self._record_changed()
        self.later(START_DELAY, self._start_server)

    def _reconcile(self) -> None:
        """Start and retire workers until there are as many as the leader wants here."""
        wanted = 0 if self.drained or not self.lease else self.world.slots
        if not wanted:
            for worker in self.workers.values():
                if worker is not None and self.lease:
                    self.later(LOCAL_DELAY, _retire, worker)
            return
        if self.finishing or self._starting or len(self.workers) >= wanted:
            return
        if self.clock.now < self._not_before:
            return
        self._start_worker(f"{self.node}.{self._life}.{self._next_worker}")

    def _start_worker(self, uid: str) -> None:
        """Record the life in etcd, which names it, then start the process."""
        lease = self.lease
        key = f"workers/{uid}"
        self._starting = True

        def create(etcd: Etcd) -> int:
            held = etcd.items.get(key)
            if held is not None:
                return held.created
            return etcd.txn([], [Put(key, self.node, lease)]) or 0

        def done(created: int) -> None:
            self._starting = False
            self._next_worker += 1
            if created and lease == self.lease:
                self.workers[uid] = None
                self.later(self.world.start_delay(), self._run_worker, uid, WorkerId(created))
            self._reconcile()

        def timed_out() -> None:
            self._starting = False
            self.later(RETRY, self._reconcile)

        self.etcd.request(self, create, done, timed_out)

    def _run_worker(self, uid: str, id_: WorkerId) -> None:
        if uid not in self.workers:
            return
        worker = Worker(
            self.world,
            id_,
            self.node,
            lambda how: self._worker_ended(uid, how),
            lambda blocks: self.later(LOCAL_DELAY, self.reports.preferred, uid, blocks),
        )
        self.workers[uid] = worker
        self.world.workers.append(worker)
        self.clock.note(f"worker {id_} starts on {self.node}")
        self._links.sync(worker)
        worker.start()

    def _worker_ended(self, uid: str, how: str) -> None:
        """How a life ended is recorded; who came to the end of the training ends the job."""
        self.later(LOCAL_DELAY, self._bury, uid, how)

    def _bury(self, uid: str, how: str) -> None:
        worker = self.workers.pop(uid, None)
        if worker is not None:
            self._links.gone(worker)
        self.reports.preferred(uid, ())
        self._not_before = self.clock.now + RETRY
        self.later(RETRY + 1, self._reconcile)
        self._write_end(uid, how)

    def _write_end(self, uid: str, how: str) -> None:
        puts = [Put(f"workers/{uid}", None)]
        if how == "succeeded":
            puts.append(Put("finishing", True))
        self.etcd.request(
            self,
            lambda etcd: etcd.txn([], puts),
            lambda _: None,
            lambda: self.later(RETRY, self._write_end, uid, how),
        )

    def worker_died(self, worker: Worker) -> None:
        for uid, known in list(self.workers.items()):
            if known is worker:
                self._worker_ended(uid, "killed")

    # -- leadership -----------------------------------------------------------------------------

    def _campaign(self) -> None:
        if not self.lease or self._campaigning or "leader" in self.view:
            return
        self._campaigning = True
        lease = self.lease

        def stand(etcd: Etcd) -> int | None:
            held = etcd.items.get("leader")
            if held is not None:
                return held.created if held.lease == lease else None
            return etcd.txn([Compare("leader", 0)], [Put("leader", self.node, lease)])

        def done(fence: int | None) -> None:
            self._campaigning = False
            if fence is not None and lease == self.lease:
                self.leader.lead(fence)

        def timed_out() -> None:
            self._campaigning = False
            self.later(RETRY, self._campaign)

        self.etcd.request(self, stand, done, timed_out)


def _retire(worker: Worker) -> None:
    worker.retiring = True
