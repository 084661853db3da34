"""Connections between processes: late, in order each, broken, cut one way, or clogged."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

from elasticps.core.ids import NodeId, ServerId
from elasticps.sim.clock import MS, Clock
from elasticps.sim.process import Process

ETCD = NodeId("etcd")
LOCAL_DELAY = 200
CONNECT_TIMEOUT = 30 * MS
STALL_TIMEOUT = 120 * MS
"""After so long without a way through, the kernel gives a connection up."""
LATE = 4 * MS
"""For so long after a break the other end may still read what had come before it."""

OnReply = Callable[[Any, Any], None]
OnLost = Callable[[], None]


class Connection:
    """From one process to a server. ``waiting`` are the requests without an answer yet."""

    __slots__ = ("back", "caller", "grace", "open", "out", "server", "stalled", "waiting")

    def __init__(self, caller: Process, server: Process, now: int) -> None:
        self.caller = caller
        self.server = server
        self.open = True
        self.out = self.back = now
        self.grace = 0
        self.stalled: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self.waiting: dict[int, tuple[OnReply, OnLost]] = {}


class Network:
    """``servers`` are the processes that can be called, by name; the dead stay in it."""

    def __init__(self, clock: Clock, random: Random, mean_delay: int) -> None:
        self.clock = clock
        self.servers: dict[ServerId, Process] = {}
        self.cut: dict[tuple[NodeId, NodeId], bool] = {}
        self.clogged: dict[NodeId, int] = {}
        self._random = random.random
        self._mean = mean_delay
        self._open: dict[tuple[str, ServerId], Connection] = {}
        self._number = 0

    def delay(self, one: NodeId, other: NodeId) -> int:
        if one == other:
            return LOCAL_DELAY
        drawn = self._random()
        spread = 12 * drawn if drawn > 0.97 else drawn
        clog = self.clogged.get(one, 0) + self.clogged.get(other, 0) if self.clogged else 0
        return int(self._mean * (0.5 + spread)) + clog

    def is_cut(self, one: NodeId, other: NodeId) -> bool:
        return bool(self.cut) and self.cut.get((one, other), False)

    # -- requests and replies -------------------------------------------------------------------

    def request(
        self, caller: Process, name: ServerId, message: Any, on_reply: OnReply, on_lost: OnLost
    ) -> None:
        """Send ``message`` to a server: ``on_reply`` or ``on_lost`` follows, or the caller dies."""
        clock, server = self.clock, self.servers[name]
        connection = self._open.get((caller.name, name))
        delay = self.delay(caller.node, server.node)
        if connection is None:
            if self.is_cut(caller.node, server.node) or self.is_cut(server.node, caller.node):
                caller.later(CONNECT_TIMEOUT, on_lost)
                return
            if not server.alive:
                caller.later(2 * delay, on_lost)
                return
            connection = self._open[caller.name, name] = Connection(caller, server, clock.now)
            delay *= 3
        self._number += 1
        number = self._number
        connection.waiting[number] = (on_reply, on_lost)
        connection.out = max(connection.out, clock.now + delay)
        clock.at(connection.out, self._arrive, connection, number, message)

    def _arrive(self, connection: Connection, number: int, message: Any) -> None:
        server, caller = connection.server, connection.caller
        if not connection.open and self.clock.now > connection.grace:
            return
        if self._stalls(connection, caller.node, server.node):
            connection.stalled.append((self._arrive, (connection, number, message)))
        elif server.alive:
            receive = server.receive  # type: ignore[attr-defined]
            server.run_from(connection, receive, connection, number, message)
        else:
            self.break_(connection)

    def reply(self, connection: Connection, number: int, status: Any, body: Any) -> None:
        if number not in connection.waiting:
            return  # asked over a connection that is gone, or answered before
        delay = self.delay(connection.server.node, connection.caller.node)
        connection.back = max(connection.back, self.clock.now + delay)
        self.clock.at(connection.back, self._return, connection, number, status, body)

    def _return(self, connection: Connection, number: int, status: Any, body: Any) -> None:
        if number not in connection.waiting:
            return
        if self._stalls(connection, connection.server.node, connection.caller.node):
            connection.stalled.append((self._return, (connection, number, status, body)))
            return
        on_reply, _ = connection.waiting.pop(number)
        connection.caller.run_from(connection, on_reply, status, body)

    # -- what goes wrong ------------------------------------------------------------------------

    def _stalls(self, connection: Connection, one: NodeId, other: NodeId) -> bool:
        if connection.stalled:
            return True
        if not self.is_cut(one, other):
            return False
        if connection.open:
            self.clock.after(STALL_TIMEOUT, self._give_up, connection)
        return True

    def _give_up(self, connection: Connection) -> None:
        if connection.stalled:
            self.break_(connection)

    def mend(self, ways: list[tuple[NodeId, NodeId]]) -> None:
        """These ways are not cut any more: what was stalled goes on, in order."""
        for way in ways:
            self.cut.pop(way, None)
        for connection in self.connections():
            stalled, connection.stalled = connection.stalled, []
            for act, args in stalled:
                act(*args)

    def break_(self, connection: Connection) -> None:
        """Whoever waits learns it; what is on its way may be read for a short while yet."""
        if not connection.open:
            return
        connection.open = False
        connection.stalled = []
        connection.grace = self.clock.now + int(self._random() * LATE)
        caller, server = connection.caller, connection.server
        self._open.pop((caller.name, ServerId(server.name)), None)
        waiting, connection.waiting = connection.waiting, {}
        for _, on_lost in waiting.values():
            caller.later(LOCAL_DELAY, on_lost)

    def connections(self) -> list[Connection]:
        return list(self._open.values())

    def forget(self, caller: Process, listed: dict[ServerId, object]) -> None:
        """``caller`` drops its connections to servers that are not registered any more."""
        for connection in self.connections():
            if connection.caller is caller and connection.server.name not in listed:
                self.break_(connection)

    def closed(self, process: Process, *, silent: bool) -> None:
        """A process has died; ``silent``: with its machine, whose kernel tells nobody."""
        for connection in self.connections():
            if connection.caller is process:
                self.break_(connection)
            elif connection.server is process and silent:
                self.clock.after(STALL_TIMEOUT, self.break_, connection)
            elif connection.server is process:
                self.clock.after(LOCAL_DELAY, self.break_, connection)
