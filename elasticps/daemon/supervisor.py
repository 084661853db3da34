"""Keeps the daemon's children alive as their restart policies say, and ends them all at its end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Self

from elasticps.core.restart import Ended, GiveUp, Restart, RestartTracker
from elasticps.daemon.child import Child, ChildSpec, Exit
from elasticps.daemon.log_files import LogBuffer, LogFile
from elasticps.errors import UsageError

logger = logging.getLogger(__name__)

KILL_WAIT_S = 1.0

OnExit = Callable[[Exit], None]


class ChildState(StrEnum):
    STARTING = "starting"
    RUNNING = "running"
    BACKING_OFF = "backing-off"
    STOPPED = "stopped"
    GAVE_UP = "gave-up"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildStatus:
    """One child as it is now. ``gave_up`` says why it is left down, if it is."""

    name: str
    pid: int | None
    state: ChildState
    restarts: int
    last_exit: Exit | None
    gave_up: str | None = None


@dataclass(slots=True, eq=False)
class _Entry:
    child: Child
    tracker: RestartTracker
    on_exit: OnExit | None
    owns_buffer: bool
    state: ChildState = ChildState.STARTING
    restarts: int = 0
    gave_up: str | None = None
    task: asyncio.Task[None] = field(init=False)

    def close_own_buffer(self) -> None:
        if self.owns_buffer:
            self.child.log_buffer.close()

    def status(self) -> ChildStatus:
        history = self.child.history
        return ChildStatus(
            name=self.child.spec.name,
            pid=self.child.pid,
            state=self.state,
            restarts=self.restarts,
            last_exit=history[-1] if history else None,
            gave_up=self.gave_up,
        )


class Supervisor:
    """``async with Supervisor(directory) as supervisor``: every child ends before the block does.

    Each child logs to ``<directory>/<name>.log``. Leaving the block stops all children at the same
    time; cancelling that kills them.
    """

    def __init__(self, log_directory: Path) -> None:
        self._log_directory = log_directory
        self._entries: dict[str, _Entry] = {}
        self._tasks = asyncio.TaskGroup()
        self._open = False

    async def __aenter__(self) -> Self:
        self._log_directory.mkdir(mode=0o750, parents=True, exist_ok=True)
        await self._tasks.__aenter__()
        self._open = True
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._open = False
        try:
            await self._end_all()
        finally:
            await self._tasks.__aexit__(kind, error, traceback)
            for entry in self._entries.values():
                entry.close_own_buffer()
            self._entries.clear()

    def add(
        self,
        spec: ChildSpec,
        on_exit: OnExit | None = None,
        *,
        log_buffer: LogBuffer | None = None,
    ) -> Child:
        """Start a child and keep it alive; it is spawned before the next await returns.

        ``on_exit`` is called on the loop after each life that ended without ``remove``; what it
        raises ends the supervisor. Raises UsageError if the name is taken, RuntimeError outside
        of the ``async with`` block.
        """
        if not self._open:
            raise RuntimeError("the supervisor is not running")
        if spec.name in self._entries:
            raise UsageError("a process of this name exists", where=spec.name, field="name")
        log_file = LogFile(self._log_directory / f"{spec.name}.log")
        child = Child(spec, log_file=log_file, log_buffer=log_buffer or LogBuffer())
        entry = _Entry(child, RestartTracker(spec.restart), on_exit, log_buffer is None)
        entry.task = self._tasks.create_task(self._keep(entry), name=f"keep {spec.name}")
        self._entries[spec.name] = entry
        return child

    async def remove(self, name: str) -> None:
        """Stop the child and forget it. Raises UsageError if there is none of this name."""
        entry = self._entries.get(name)
        if entry is None:
            raise UsageError("there is no process of this name", where=name, field="name")
        _end(entry)
        await asyncio.wait({entry.task})
        if self._entries.get(name) is entry:
            del self._entries[name]
            entry.close_own_buffer()

    def snapshot(self) -> list[ChildStatus]:
        """Every child as it is now, in the order of adding."""
        return [entry.status() for entry in self._entries.values()]

    async def _end_all(self) -> None:
        entries = list(self._entries.values())
        for entry in entries:
            _end(entry)
        if not entries:
            return
        tasks = [entry.task for entry in entries]
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            for entry in entries:
                entry.child.abort()
            await asyncio.wait(tasks, timeout=KILL_WAIT_S)
            raise

    async def _keep(self, entry: _Entry) -> None:
        child = entry.child
        try:
            while True:
                child.start()
                entry.tracker.started(time.monotonic())
                entry.state = ChildState.RUNNING
                ending = await child.wait()
                delay_s = self._decide(entry, ending)
                if entry.on_exit is not None:
                    entry.on_exit(ending)
                if delay_s is None:
                    return
                await asyncio.sleep(delay_s)
                entry.restarts += 1
                entry.state = ChildState.STARTING
        finally:
            await child.stop()
            if entry.gave_up is None:
                entry.state = ChildState.STOPPED

    def _decide(self, entry: _Entry, ending: Exit) -> float | None:
        """Set the state after an exit; the delay before the restart, None for no restart."""
        name = entry.child.spec.name
        decision = entry.tracker.exited(time.monotonic(), _ended(ending))
        if isinstance(decision, Restart):
            entry.state = ChildState.BACKING_OFF
            logger.warning("%s %s; restart in %g s", name, ending.reason, decision.after_s)
            return decision.after_s
        if isinstance(decision, GiveUp):
            entry.state = ChildState.GAVE_UP
            entry.gave_up = f"{decision.reason}; the last: {ending.reason}"
            logger.error("%s: %s", name, entry.gave_up)
        else:
            entry.state = ChildState.STOPPED
            logger.info("%s %s", name, ending.reason)
        return None


def _end(entry: _Entry) -> None:
    """Ask once; asking again would cut the grace short."""
    if not entry.task.cancelling():
        entry.task.cancel()


def _ended(ending: Exit) -> Ended:
    if ending.requested:
        return Ended.REQUESTED
    if ending.signal is not None:
        return Ended.SIGNAL
    return Ended.CODE if ending.code is not None else Ended.NOT_STARTED
