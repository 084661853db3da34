"""A process on a node: it lives, may be stopped and woken, and dies with all that it knew."""

from __future__ import annotations

from typing import Any

from elasticps.core.ids import NodeId
from elasticps.sim.clock import Act, Clock


class Process:
    """What reaches a stopped process waits for it, as in its sockets' buffers."""

    def __init__(self, clock: Clock, name: str, node: NodeId) -> None:
        self.clock = clock
        self.name = name
        self.node = node
        self.alive = True
        self.paused = False
        self._backlog: list[tuple[object, Act, tuple[Any, ...]]] = []

    def run(self, act: Act, *args: Any) -> None:
        """Something happens to this process now: its daemon's word, or its own timer."""
        self.run_from(None, act, *args)

    def run_from(self, source: object, act: Act, *args: Any) -> None:
        """The same, over a connection, which keeps the order of its own messages alone."""
        if self.paused:
            self._backlog.append((source, act, args))
        elif self.alive:
            act(*args)

    def later(self, delay: int, act: Act, *args: Any) -> None:
        self.clock.after(delay, self.run, act, *args)

    def pause(self) -> None:
        self.paused = True

    def wake(self) -> None:
        """Go on: each connection is read in its order, and now and then the last one first."""
        if not self.paused:
            return
        self.paused = False
        backlog, self._backlog = self._backlog, []
        by_source: dict[object, list[tuple[Act, tuple[Any, ...]]]] = {}
        for source, act, args in backlog:
            by_source.setdefault(source, []).append((act, args))
        sources = list(by_source)
        if self.clock.now % 2:
            sources.reverse()
        for source in sources:
            for act, args in by_source[source]:
                self.run_from(source, act, *args)

    def kill(self) -> None:
        self.alive = self.paused = False
        self._backlog = []
