"""What goes wrong in a run, drawn from its seed, and how it is put right again."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import TYPE_CHECKING

from elasticps.core.ids import NodeId, ServerId, node_of
from elasticps.core.plan import Entry
from elasticps.sim.clock import MS
from elasticps.sim.etcd import Put
from elasticps.sim.network import ETCD
from elasticps.sim.process import Process

if TYPE_CHECKING:
    from elasticps.sim.server import Server
    from elasticps.sim.world import World

KINDS = {
    "kill_server": 5,
    "kill_worker": 4,
    "kill_node": 4,
    "pause_node": 3,
    "pause_server": 2,
    "isolate_from_etcd": 3,
    "cut_between_nodes": 3,
    "break_connections": 5,
    "clog": 2,
    "hold_watch": 3,
    "move_blindly": 7,
    "pause_etcd": 1,
    "compact_etcd": 2,
    "end_leadership": 2,
    "add_node": 5,
    "drain": 4,
    "slow_plans": 2,
}
MOST_NODES = 5
LONGEST_AMBUSH = 30 * MS


class Faults:
    """Causes ``count`` faults one after the other; ``happened`` are those that did."""

    def __init__(self, world: World, random: Random, count: int, calm: int) -> None:
        self.happened: list[str] = []
        self.begun = self.over = False
        self.first_at = self.last_at = 0
        self._world = world
        self._random = random
        self._left = count
        self._calm = calm
        self._undo: list[Callable[[], None]] = []
        self._traps: dict[ServerId, Callable[[], None]] = {}
        self._blinds = 0

    def begin(self) -> None:
        if not self.begun:
            self.begun = True
            self._world.clock.after(self._while(self._calm), self._next)

    def _while(self, most: int) -> int:
        return int(most * (0.1 + self._random.random()))

    def _chance(self, likely: float) -> bool:
        return self._random.random() < likely

    def _next(self) -> None:
        if self.over:
            return
        if not self._left:
            self.heal()
            return
        self._left -= 1
        (kind,) = self._random.choices(list(KINDS), weights=list(KINDS.values()))
        world = self._world
        world.clock.note(f"fault {kind}")
        if getattr(self, f"_{kind}")():
            self.first_at = self.first_at or world.clock.now
            self.last_at = world.clock.now
            self.happened.append(kind)
        # The last one is given the time to do its worst.
        rest = 0 if self._left else world.ttl
        world.clock.after(rest + self._while(self._calm), self._next)

    def _undone_by(self, most: int, undo: Callable[[], None]) -> None:
        """Undo it after a while, or when all is healed, whichever is first."""
        undone = False

        def once() -> None:
            nonlocal undone
            if not undone:
                undone = True
                undo()

        self._undo.append(once)
        self._world.clock.after(self._while(most), once)

    def heal(self) -> None:
        """Everything works again; who died comes back."""
        if self.over:
            return
        self._world.clock.note("heal")
        for strike in list(self._traps.values()):
            strike()
        self.over = True
        for undo in self._undo:
            undo()
        self._world.healed()

    # -- who is hit -----------------------------------------------------------------------------

    def _node(self) -> NodeId:
        return self._random.choice(list(self._world.daemons))

    def _server(self) -> Server | None:
        """A living server, more often than not one that leads a block."""
        servers = self._world.living_servers
        if not servers:
            return None
        leading = [server for server in servers if self._world.leads(server)]
        return self._random.choice(leading if leading and self._chance(0.7) else servers)

    # -- processes ------------------------------------------------------------------------------

    def _kill_server(self) -> bool:
        server = self._server()
        if server is None or not self._world.may_lose(server):
            return False

        def kill() -> None:
            if self._world.may_lose(server):
                self._world.kill(server)

        self._in_the_act(server, kill)
        return True

    def _in_the_act(self, server: Server | None, strike: Callable[[], None]) -> None:
        """Strike now, or soon after the server has published an op that is still on its way."""
        if server is None or self._chance(0.4):
            strike()
            return
        struck = False

        def once() -> None:
            nonlocal struck
            if not struck:
                struck = True
                self._traps.pop(server.id, None)
                self.last_at = self._world.clock.now
                strike()

        self._traps[server.id] = once
        self._world.clock.after(LONGEST_AMBUSH, once)

    def saw_op(self, server: Server) -> None:
        """A primary has just published an op."""
        trap = self._traps.get(server.id)
        if trap is not None:
            self._world.clock.after(self._while(self._world.scenario.mean_delay), trap)

    def _kill_worker(self) -> bool:
        workers = self._world.living_workers
        if workers:
            self._world.kill(self._random.choice(workers))
        return bool(workers)

    def _kill_node(self) -> bool:
        world, node = self._world, self._node()
        daemon = world.daemons[node]
        if not daemon.alive or (daemon.server and not world.may_lose(daemon.server)):
            return False
        silent = self._chance(0.5)

        def kill() -> None:
            if daemon.alive and (not daemon.server or world.may_lose(daemon.server)):
                world.kill_node(node, silent=silent)

        self._in_the_act(daemon.server, kill)
        self._undone_by((300 if self._chance(0.7) else 3000) * MS, lambda: world.start_node(node))
        return True

    def _pause_node(self) -> bool:
        return self._stop(self._world.processes_of(self._node()))

    def _pause_server(self) -> bool:
        server = self._server()
        return server is not None and self._stop([server])

    def _stop(self, processes: list[Process]) -> bool:
        for process in processes:
            process.pause()

        def wake() -> None:
            for process in processes:
                process.wake()

        self._undone_by(3 * self._world.ttl, wake)
        return bool(processes)

    # -- the network ----------------------------------------------------------------------------

    def _cut(self, ways: list[tuple[NodeId, NodeId]]) -> bool:
        """Cut some ways, in both directions or in one."""
        network = self._world.network
        direction = self._random.choice(["both", "both", "there", "back"])
        cut: list[tuple[NodeId, NodeId]] = []
        for one, other in ways:
            cut += [(one, other)] if direction != "back" else []
            cut += [(other, one)] if direction != "there" else []
        network.cut.update(dict.fromkeys(cut, True))
        self._undone_by(4 * self._world.ttl, lambda: network.mend(cut))
        return bool(cut)

    def _isolate_from_etcd(self) -> bool:
        return self._cut([(self._node(), ETCD)])

    def _cut_between_nodes(self) -> bool:
        one = self._node()
        others = [node for node in self._world.daemons if node != one]
        count = self._random.randint(1, len(others))
        return self._cut([(one, other) for other in self._random.sample(others, count)])

    def _break_connections(self) -> bool:
        network = self._world.network
        hit = [each for each in network.connections() if self._chance(0.5)]
        for connection in hit:
            network.break_(connection)
        return bool(hit)

    def _clog(self) -> bool:
        clogged, node = self._world.network.clogged, self._node()
        clogged[node] = self._random.randint(2, 20) * MS

        def unclog() -> None:
            clogged.pop(node, None)

        self._undone_by(100 * MS, unclog)
        return True

    # -- etcd and the plan ----------------------------------------------------------------------

    def _hold_watch(self) -> bool:
        """A node does not hear of what changes."""
        self._blind(self._node())
        return True

    def _move_blindly(self) -> bool:
        """Blocks are to move, and who led one does not hear of its end."""
        self._blinds += 1
        return (self._chance(0.3) and self._add_node()) or self._drain()

    def _blind(self, node: NodeId) -> None:
        world = self._world
        daemon = world.daemons[node]
        world.etcd.hold(daemon, world.clock.now + world.ttl + self._while(3 * world.ttl))
        self._undo.append(lambda: world.etcd.hold(daemon, 0))

    def saw_plan(self, old: tuple[Entry, ...], new: tuple[Entry, ...]) -> None:
        """The leader is about to write a plan."""
        dropped = [
            (node_of(before.primary), node_of(after.primary))
            for before, after in zip(old, new, strict=False)
            if before.primary not in after.servers and self._world.is_alive(before.primary)
        ]
        if dropped and self._blinds and not self.over:
            self._blinds -= 1
            self._blind_readers(*dropped[-1])

    def _blind_readers(self, old: NodeId, new: NodeId) -> None:
        """Who led a block, and perhaps another node, go by the plan that is over."""
        others = [node for node in self._world.daemons if node not in (old, new)]
        hit = [old, *self._random.sample(others, min(len(others), 1))]
        for node in hit:
            self._blind(node)
        if self._chance(0.7):
            # Who comes in place of a dead worker reads before it has pushed anything.
            self._world.clock.after(self._while(5 * MS), self._kill_workers_of, hit)

    def _kill_workers_of(self, nodes: list[NodeId]) -> None:
        for worker in self._world.living_workers:
            if worker.node in nodes and not self.over:
                self._world.kill(worker)

    def _pause_etcd(self) -> bool:
        etcd = self._world.etcd
        etcd.paused = True
        self._undone_by(2 * self._world.ttl, etcd.resume)
        return True

    def _compact_etcd(self) -> bool:
        self._world.etcd.compact()
        return True

    def _end_leadership(self) -> bool:
        etcd = self._world.etcd
        return not etcd.paused and etcd.txn([], [Put("leader", None)]) is not None

    def _slow_plans(self) -> bool:
        world = self._world
        world.slow_plans = self._random.randint(20, 150) * MS

        def fast() -> None:
            world.slow_plans = 0

        self._undone_by(400 * MS, fast)
        return True

    def _add_node(self) -> bool:
        world = self._world
        if len(world.daemons) >= MOST_NODES:
            return False
        world.start_node(NodeId(f"n{len(world.daemons) + 1}"))
        return True

    def _drain(self) -> bool:
        """A node is to be emptied; later it may be used again."""
        world, node = self._world, self._node()
        key = f"drain/{node}"
        others = [each for each in world.daemons if f"drain/{each}" not in world.etcd.items]
        staying = [each for each in others if each != node]
        if not staying or world.etcd.paused:
            return False
        world.etcd.txn([], [Put(key, True)])
        if self._chance(0.6) or len(staying) < world.job.min_insync:

            def undrain() -> None:
                world.etcd.txn([], [Put(key, None)])

            self._undone_by(300 * MS, undrain)
        return True
