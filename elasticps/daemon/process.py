"""One operating-system process at the head of its own session and process group.

The process dies with the daemon, and its group dies with the process, even where no daemon is left
to see to that (``reap``).
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

from elasticps.daemon.output import readable

logger = logging.getLogger(__name__)

REAP = str(Path(__file__).with_name("reap.py"))
KILL_WAIT_S = 1.0


class ProcessGroup:
    """A running process and whatever it forks into its group. Make it with ``spawn``."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._pidfd = os.pidfd_open(process.pid)
        self.pid = process.pid
        self.stdout = process.stdout.fileno()
        self.stderr = process.stderr.fileno()
        os.set_blocking(self.stdout, False)
        os.set_blocking(self.stderr, False)

    @classmethod
    def spawn(
        cls,
        argv: tuple[str, ...],
        env: Mapping[str, str],
        cwd: str | None,
        stdin: int = subprocess.DEVNULL,
    ) -> ProcessGroup:
        """Start ``argv``, without a shell. Raises OSError where no process can be made.

        Call it from a thread that lives as long as the daemon: the child dies with that thread.
        """
        # A wrapper of 15 ms, not preexec_fn: that would run Python after fork() in a process with
        # gRPC and log threads, where any lock may be held for ever, and it rules out vfork().
        process = subprocess.Popen(  # noqa: S603 - no shell, and the argv is the operator's own
            [sys.executable, "-I", "-S", REAP, str(os.getpid()), "--group", *argv],
            bufsize=0,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=cwd,
            start_new_session=True,
        )
        try:
            return cls(process)
        except OSError:
            process.kill()
            process.communicate()
            raise

    async def ended(self) -> None:
        """Wait for the process to end. It stays a zombie until ``reap``, so its pid stays its."""
        await readable(self._pidfd)

    def terminate(self) -> None:
        """SIGTERM to the process alone."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to the whole group, unless the process has been reaped."""
        # Only an unreaped leader keeps the group's number from being given to strangers.
        if self._process.returncode is None:
            # The group may consist of a zombie, or of setuid programs that we may not signal.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def reap(self) -> int:
        """After ``ended``: kill what is left of the group; the exit code, or minus the signal."""
        self.kill()
        return self._process.wait()

    def close(self) -> None:
        """Kill and reap what still runs, and close every descriptor. Idempotent."""
        if self._pidfd < 0:
            return
        self.kill()
        try:
            self._process.wait(timeout=KILL_WAIT_S)
        except subprocess.TimeoutExpired:
            logger.warning("process %d has not ended %g s after SIGKILL", self.pid, KILL_WAIT_S)
            # It is reaped when it does: on a busy machine much memory takes long to be given back.
            threading.Thread(target=self._process.wait, name="reap", daemon=True).start()
        os.close(self._pidfd)
        self._pidfd = -1
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None
            pipe.close()
