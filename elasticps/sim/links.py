"""What a simulated daemon's children must know, sent as it changes: ``daemon/links.py``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from elasticps.core.ids import ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.sim.network import LOCAL_DELAY
from elasticps.sim.process import Process
from elasticps.sim.server import Server

if TYPE_CHECKING:
    from elasticps.sim.daemon import Daemon
    from elasticps.sim.worker import Worker


@dataclass(frozen=True, slots=True)
class News:
    """What has changed for a child; None: nothing there."""

    servers: dict[ServerId, object] | None = None
    entries: tuple[Entry, ...] | None = None
    alive: tuple[tuple[WorkerId, ...], int] | None = None


@dataclass(slots=True)
class _Told:
    """What a child knows."""

    servers: dict[ServerId, object] | None = None
    plan: int = 0
    alive: tuple[WorkerId, ...] | None = None


class Links:
    """The daemon's channels to its children, and what each has been told."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._told: dict[Process, _Told] = {}

    def gone(self, child: Process) -> None:
        self._told.pop(child, None)

    def sync(self, child: Server | Worker) -> None:
        """Tell a child what it does not know yet."""
        daemon = self._daemon
        told = self._told.setdefault(child, _Told())
        item = daemon.view.get("plan")
        plan = item.modified if item else 0
        servers = daemon.servers
        servers_news = servers if servers != told.servers else None
        plan_news = daemon.entries if plan != told.plan else None
        alive_news = None
        if isinstance(child, Server):
            alive = daemon.alive_workers
            if alive != told.alive:
                told.alive, alive_news = alive, (alive, daemon.revision)
        told.servers, told.plan = servers, plan
        if servers_news is None and plan_news is None and alive_news is None:
            return
        news = News(servers_news, plan_news, alive_news)
        daemon.clock.after(LOCAL_DELAY, child.run, child.hear, news)
