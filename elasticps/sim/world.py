"""One seed's cluster: made, run through its faults to a calm end, and held to its promises."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from elasticps.core.ids import LEDGER, BlockId, NodeId, ServerId
from elasticps.core.plan import Entry, decode_part
from elasticps.core.replication import Role
from elasticps.sim.block import Block
from elasticps.sim.checkers import Checkers, Violation
from elasticps.sim.clock import MS, Clock
from elasticps.sim.daemon import Daemon
from elasticps.sim.etcd import Etcd
from elasticps.sim.faults import Faults
from elasticps.sim.hosting import Hosted
from elasticps.sim.ledger import LedgerHost
from elasticps.sim.messages import Op, Pushes
from elasticps.sim.network import LOCAL_DELAY, Network
from elasticps.sim.process import Process
from elasticps.sim.scenario import Scenario, drawn
from elasticps.sim.server import Server
from elasticps.sim.worker import Worker

LOOK = 10 * MS
LONGEST_BEFORE_HEAL = 3000 * MS
LONGEST_AFTER_HEAL = 4000 * MS
WRITABLE_AFTER = 300 * MS
"""Beyond the lease's time to live: for plans, snapshots and new processes."""
ROUNDS_AFTER_HEAL = 3


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one seed. ``void``: why it proves nothing; empty when it does."""

    seed: int
    events: int
    digest: str
    void: str = ""
    checker: str = ""
    violation: str = ""
    faults: tuple[str, ...] = ()
    last_events: tuple[str, ...] = ()


class World:
    """All processes of one simulated cluster, and what they run on."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.scenario: Scenario = drawn(Random(f"{seed}:scenario"))
        self.job = self.scenario.job
        self.sizes = [1] * (self.job.blocks + 1)
        self.ttl = self.scenario.ttl
        self.slots = self.scenario.slots
        self.slow_plans = 0
        self.clock = Clock()
        self.network = Network(self.clock, Random(f"{seed}:net"), self.scenario.mean_delay)
        self.etcd = Etcd(self.clock, self.network, Random(f"{seed}:etcd"), self.scenario.watch_lag)
        self.check = Checkers(self)
        self.daemons: dict[NodeId, Daemon] = {}
        self.workers: list[Worker] = []
        self.leases: dict[int, NodeId] = {}
        self.lost = False
        self.done = False
        self._lives: dict[NodeId, int] = {}
        self._rates = Random(f"{seed}:rates")
        self._exchanges = Random(f"{seed}:exchanges")
        self._copies = Random(f"{seed}:copies")
        self._enough = -1
        self._healed_at = -1
        self.faults = Faults(
            self, Random(f"{seed}:faults"), self.scenario.faults, self.scenario.calm
        )

    # -- running --------------------------------------------------------------------------------

    def run(self) -> Outcome:
        checker = violation = ""
        try:
            for number in range(1, self.scenario.nodes + 1):
                self.start_node(NodeId(f"n{number}"))
            self.clock.after(LOOK, self._look)
            self.clock.run(self)
        except Violation as error:
            checker, violation = error.checker, str(error)
        clock = self.clock
        return Outcome(
            self.seed,
            clock.events,
            clock.digest,
            "" if violation else self._void(),
            checker,
            violation,
            tuple(self.faults.happened),
            tuple(clock.trace[-50:]),
        )

    def _void(self) -> str:
        """Why this run proves nothing."""
        if self.lost:
            return "lost"
        if not self.faults.happened:
            return "no fault"
        if not 0 <= self.check.first_ack < self.faults.first_at:
            return "no push before the faults"
        if self.check.last_ack <= self.faults.last_at:
            return "no push after the faults"
        return ""

    def _look(self) -> None:
        """Is it over, or overdue?"""
        self.clock.after(LOOK, self._look)
        if "lost" in self.etcd.items:
            self.lost = self.done = True
            return
        ended = "finishing" in self.etcd.items and not self.living_workers
        if not self.faults.over:
            if ended or self.clock.now > LONGEST_BEFORE_HEAL:
                self.faults.heal()
        elif ended and self._is_settled():
            self._finish()
        elif not ended and self.check.last_ack < self._healed_at and self._is_late():
            self.check.fail("writable", f"no push acknowledged since {self._healed_at}: {self}")
        elif self.clock.now > self._healed_at + LONGEST_AFTER_HEAL:
            self.check.fail("liveness", f"not over long after heal: {self}")

    def _is_late(self) -> bool:
        return self.clock.now > self._healed_at + self.ttl + WRITABLE_AFTER

    def __str__(self) -> str:
        turns = [(worker.id, worker.turn) for worker in self.living_workers]
        return f"plan {self.entries}, workers {turns}, settled {self._is_settled()}"

    def healed(self) -> None:
        self._healed_at = self.clock.now
        rounds = [worker.round for worker in self.workers]
        self._enough = max(rounds, default=0) + ROUNDS_AFTER_HEAL

    def is_enough(self, round_: int) -> bool:
        """Has a worker that is to begin ``round_`` done what this run asks of it?"""
        return 0 <= self._enough < round_

    def progressed(self) -> None:
        self.faults.begin()

    def published(self, hosted: Hosted, op: Op) -> None:
        """A primary has counted an op and sends it to its peers."""
        server = hosted.server
        self.clock.note(
            f"{server.id} block {hosted.block} v{op.version} "
            f"{op.op.pushes if op.op else op.command or 'initial'}"
        )
        self.faults.saw_op(server)

    def planned(self, old: tuple[Entry, ...], new: tuple[Entry, ...]) -> None:
        self.check.planned(new)
        self.faults.saw_plan(old, new)

    # -- rates ----------------------------------------------------------------------------------

    def exchange_fails(self) -> bool:
        """Does what a worker exchanges with its peers fail, although all of them live?"""
        return self._exchanges.random() < 0.1

    def pace(self) -> float:
        """How slow a worker is: now and then one is a straggler."""
        return self._rates.choice([1, 1, 1, 4])

    def compute(self, pace: float) -> int:
        return int(self.scenario.compute * pace * (0.3 + self._rates.random()))

    def plan_delay(self) -> int:
        return int(self.scenario.plan_delay * self._rates.random()) + self.slow_plans

    def copy_delay(self) -> int:
        """Until a block's turn to be copied for a checkpoint comes."""
        return int(self.scenario.compute * 3 * self._copies.random())

    def start_delay(self) -> int:
        return int(20 * MS * self._rates.random())

    # -- who there is ---------------------------------------------------------------------------

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The plan as etcd has it."""
        item = self.etcd.items.get("plan")
        return decode_part(item.value, item.modified) if item else ()

    @property
    def living_servers(self) -> list[Server]:
        found = (daemon.server for daemon in self.daemons.values() if daemon.alive)
        return [server for server in found if server is not None and server.alive]

    @property
    def living_workers(self) -> list[Worker]:
        return [worker for worker in self.workers if worker.alive]

    def processes_of(self, node: NodeId) -> list[Process]:
        daemon = self.daemons[node]
        children: list[Process] = [server for server in self.living_servers if server.node == node]
        children += [worker for worker in self.living_workers if worker.node == node]
        return [daemon, *children] if daemon.alive else []

    def is_alive(self, server: ServerId) -> bool:
        return self.network.servers[server].alive

    def is_listed(self, worker: Worker) -> bool:
        """Does etcd have this worker as alive?"""
        items = self.etcd.items
        return any(
            key.startswith("workers/") and item.created == worker.id for key, item in items.items()
        )

    def lease_holds(self, server: Server) -> bool:
        """Does etcd hold a lease of this server's node, with this server?"""
        item = self.etcd.items.get(f"nodes/{server.node}")
        return item is not None and item.value[1] == server.id

    def leads(self, server: Server) -> bool:
        roles = (hosted.replication.role for hosted in server.hosted.values())
        return any(role is Role.PRIMARY for role in roles)

    def may_lose(self, server: Server) -> bool:
        """Would every block have a living holder without this server?"""
        if not self.scenario.spares:
            return True
        living = {other.id: None for other in self.living_servers if self.lease_holds(other)}
        return all(
            any(holder in living for holder in entry.holders if holder != server.id)
            for entry in self.entries
            if server.id in entry.holders
        )

    # -- lives and deaths -----------------------------------------------------------------------

    def start_node(self, node: NodeId) -> None:
        if node in self.daemons and self.daemons[node].alive:
            return
        self._lives[node] = self._lives.get(node, 0) + 1
        daemon = self.daemons[node] = Daemon(self, node, self._lives[node])
        daemon.start()

    def kill(self, process: Server | Worker, *, silent: bool = False) -> None:
        """It dies, and its daemon and peers notice, unless the whole machine is gone."""
        if not process.alive:
            return
        self.clock.note(f"{process.name} dies")
        process.kill()
        self.network.closed(process, silent=silent)
        daemon = self.daemons[process.node]
        if isinstance(process, Server):
            daemon.later(LOCAL_DELAY, daemon.server_died)
        else:
            daemon.later(LOCAL_DELAY, daemon.worker_died, process)

    def kill_node(self, node: NodeId, *, silent: bool) -> None:
        daemon = self.daemons[node]
        processes = self.processes_of(node)
        self.clock.note(f"{node} dies")
        daemon.kill()
        self.etcd.unwatch(daemon)
        for process in processes[1:]:
            assert isinstance(process, Server | Worker)
            self.kill(process, silent=silent)
        if self.scenario.detects and not silent and daemon.lease:
            self.clock.after(5 * MS, self._declare_dead, daemon.lease)

    def _declare_dead(self, lease: int) -> None:
        if not self.etcd.paused:
            self.etcd.revoke(lease)

    # -- the end --------------------------------------------------------------------------------

    def _is_settled(self) -> bool:
        """Do all blocks have all the replicas that they can have, all in sync?"""
        items = self.etcd.items
        usable = [
            server.id
            for server in self.living_servers
            if self.lease_holds(server) and f"drain/{server.node}" not in items
        ]
        wanted = min(self.job.replicas, len(usable))
        for entry in self.entries:
            if entry.learners or len(entry.holders) != wanted:
                return False
            if any(holder not in usable for holder in entry.holders):
                return False
            primary = self._hosted(entry.primary, entry.block)
            if primary is None or primary.replication.epoch != entry.epoch:
                return False
            if not primary.replication.all_acked:
                return False
        return bool(self.entries)

    def _hosted(self, server: ServerId, block: BlockId) -> Block | LedgerHost | None:
        process = self.network.servers[server]
        assert isinstance(process, Server)
        hosted = process.hosted.get(block)
        assert hosted is None or isinstance(hosted, Block | LedgerHost)
        return hosted

    def _finish(self) -> None:
        self.done = True
        logs = {}
        ledger = None
        for entry in self.entries:
            held = [self._hosted(server, entry.block) for server in entry.holders]
            replications = [each.replication for each in held if each is not None]
            versions = [(each.version, each.history) for each in replications]
            if len(versions) != len(entry.holders) or versions[1:] != versions[:-1]:
                self.check.fail("replica-equality", f"block {entry.block} at rest: {versions}")
            if entry.block == LEDGER:
                ledger = held[0]
            else:
                logs[entry.block] = self._value_of(held, entry.block, ledger)
        self.check.finished(logs)
        if isinstance(ledger, LedgerHost) and self.job.data is not None:
            state = ledger.ledger
            if not self.job.in_rounds:
                self.check.covered(logs[BlockId(1)], state.cut().supply)
                return
            leases = (*state.leases.values(), *state.kept.values())
            lent = [part for lease in leases for part in lease]
            kept = [*lent, *state.supply.given_back]
            self.check.samples(logs[BlockId(1)], kept, state.supply.position, state.last)

    def _value_of(
        self,
        held: list[Block | LedgerHost | None],
        block: BlockId,
        ledger: Block | LedgerHost | None,
    ) -> tuple[Pushes, ...]:
        """The value that all replicas have; a backup may have its newest round prepared only."""
        blocks = [each for each in held if isinstance(each, Block)]
        assert isinstance(ledger, LedgerHost)
        values = [each.settled_log(ledger.ledger.last) for each in blocks]
        if values[1:] != values[:-1]:
            self.check.fail("replica-equality", f"block {block} at rest: {values}")
        return values[0]
