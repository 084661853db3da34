"""A child of the daemon: what to run, the life of the process, and how each life ended."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from elasticps.core.restart import RestartPolicy
from elasticps.daemon.log_files import LogBuffer, LogFile
from elasticps.daemon.output import Output
from elasticps.daemon.process import ProcessGroup
from elasticps.errors import UsageError

HISTORY_LENGTH = 10
DRAIN_S = 1.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LIKELY_CAUSES = {
    "SIGKILL": " (out of memory?)",
    "SIGSEGV": " (it crashed)",
    "SIGBUS": " (it crashed)",
    "SIGABRT": " (it aborted)",
    "SIGILL": " (it crashed)",
    "SIGFPE": " (it crashed)",
    126: " (the command can't be run?)",
    127: " (command not found?)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildSpec:
    """What to run. ``env`` is the whole environment: nothing of the daemon's own leaks in.

    ``name`` is unique in a supervisor and names the log file. ``source`` is whose its lines are in
    the log buffer; its name's where that is empty. Raises UsageError on values that no process can
    have.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: str | None = None
    restart: RestartPolicy
    stop_grace_s: float = 5.0
    source: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r} is no name for a process",
                field="name",
                limit="1 to 64 letters, digits, '.', '_' and '-', the first a letter or digit",
            )
        if not self.argv or not self.argv[0]:
            raise UsageError("there is no command to run", where=self.name, field="argv")
        if any("\0" in argument for argument in self.argv):
            raise UsageError("an argument contains a NUL", where=self.name, field="argv")
        for key, value in self.env.items():
            if not key or "=" in key or "\0" in key + value:
                raise UsageError(
                    f"{key!r} is no environment variable", where=self.name, field="env"
                )
        if self.cwd is not None and "\0" in self.cwd:
            raise UsageError("the folder contains a NUL", where=self.name, field="cwd")
        if not 0 <= self.stop_grace_s < float("inf"):
            raise UsageError("out of range", where=self.name, field="stop_grace_s", limit=">= 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Exit:
    """How one life ended: by ``code`` or by ``signal``; neither if it could not be started.

    ``requested``: stop or abort was called before it ended.
    """

    code: int | None
    signal: str | None
    started_unix: float
    ended_unix: float
    reason: str
    requested: bool = False


@dataclass(slots=True, eq=False)
class _Life:
    group: ProcessGroup
    started_unix: float
    task: asyncio.Task[Exit] = field(init=False)
    requested: bool = False
    killed_after: str | None = None


class Child:
    """One supervised process, which may live several times, one after the other.

    The process has a session of its own, /dev/null as input, and dies with the daemon, however that
    dies. What it forks dies with it, unless it leaves the process group. Its output goes to the log
    buffer and to the log file. Use it from one event loop, on a thread that lives as long as the
    daemon.
    """

    def __init__(self, spec: ChildSpec, *, log_file: LogFile, log_buffer: LogBuffer) -> None:
        self.spec = spec
        self.log_file = log_file
        self.log_buffer = log_buffer
        self._history: deque[Exit] = deque(maxlen=HISTORY_LENGTH)
        self._life: _Life | None = None

    @property
    def pid(self) -> int | None:
        """The process id while it lives."""
        return self._life.group.pid if self._life is not None else None

    @property
    def history(self) -> tuple[Exit, ...]:
        """How the last ten lives ended, the latest last."""
        return tuple(self._history)

    def start(self) -> None:
        """Spawn the process. A failure to spawn is an Exit at once: see ``wait``.

        Raises RuntimeError while a life lasts.
        """
        if self._life is not None:
            raise RuntimeError(f"{self.spec.name} is running")
        started_unix = time.time()
        try:
            group = ProcessGroup.spawn(self.spec.argv, self.spec.env, self.spec.cwd)
        except OSError as error:
            reason = f"could not be started: {error.strerror}"
            if error.filename:
                reason += f": {error.filename}"
            self._history.append(
                Exit(
                    code=None,
                    signal=None,
                    started_unix=started_unix,
                    ended_unix=time.time(),
                    reason=reason,
                )
            )
            return
        life = self._life = _Life(group, started_unix)
        life.task = asyncio.create_task(self._live(life), name=f"child {self.spec.name}")
        # A task that is cancelled before its first step runs no finally.
        life.task.add_done_callback(lambda _: self._release(life))

    async def wait(self) -> Exit:
        """Wait for the end of the life, with its output taken; the last one's if none lasts.

        Raises RuntimeError if it was never started.
        """
        if self._life is not None:
            return await asyncio.shield(self._life.task)
        if not self._history:
            raise RuntimeError(f"{self.spec.name} was never started")
        return self._history[-1]

    async def stop(self) -> None:
        """SIGTERM to the process, SIGKILL to its group after the grace; returns when it is gone.

        Idempotent. Cancelling it kills the group at once.
        """
        life = self._life
        if life is None:
            return
        if not life.requested:
            life.requested = True
            life.group.terminate()
        try:
            await asyncio.wait({life.task}, timeout=self.spec.stop_grace_s)
            if not life.task.done():
                life.killed_after = f"it ignored SIGTERM for {self.spec.stop_grace_s:g} s"
                life.group.kill()
                await asyncio.wait({life.task})
        except asyncio.CancelledError:
            self.abort()
            raise

    def abort(self) -> None:
        """SIGKILL to the whole group now, without waiting. Idempotent."""
        life = self._life
        if life is not None:
            life.requested = True
            life.killed_after = life.killed_after or "abort"
            life.group.kill()

    async def _live(self, life: _Life) -> Exit:
        try:
            output = Output(self.spec.source or self.spec.name, self.log_buffer, self.log_file)
            async with contextlib.aclosing(output):
                ending = await self._take_output(life, output)
                await output.write([ending.reason], "daemon")
            self._history.append(ending)
            return ending
        finally:
            self._release(life)

    async def _take_output(self, life: _Life, output: Output) -> Exit:
        group = life.group
        async with asyncio.TaskGroup() as tasks:
            pipes = [
                tasks.create_task(output.read(group.stdout, "stdout")),
                tasks.create_task(output.read(group.stderr, "stderr")),
            ]
            await group.ended()
            ending = self._exit(life, group.reap())
            _, held = await asyncio.wait(pipes, timeout=DRAIN_S)
            for pipe in held:  # by a process that has left the group
                pipe.cancel()
        return ending

    def _exit(self, life: _Life, returncode: int) -> Exit:
        name = signal_name(-returncode) if returncode < 0 else None
        return Exit(
            code=None if name else returncode,
            signal=name,
            started_unix=life.started_unix,
            ended_unix=time.time(),
            reason=describe(name or returncode, life.requested, life.killed_after),
            requested=life.requested,
        )

    def _release(self, life: _Life) -> None:
        life.group.close()
        if self._life is life:
            self._life = None


def describe(ending: str | int, requested: bool, killed_after: str | None) -> str:
    """Say in a user's words how a process ended: ``ending`` is a signal's name or an exit code."""
    how = f"killed by {ending}" if isinstance(ending, str) else f"exited with code {ending}"
    if not requested:
        return how + LIKELY_CAUSES.get(ending, "")
    if killed_after and ending == "SIGKILL":
        return f"stopped on request: {how} ({killed_after})"
    return f"stopped on request: {how}"


def signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
