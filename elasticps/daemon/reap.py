"""Becomes a command that dies with its parent: ``python -I -S reap.py PARENT_PID -- argv...``.

Run by path and alone, so that it starts in about 15 ms and imports nothing of elasticps. It keeps
its process id, and leaves argv, environment, signals and standard streams as a fresh program has
them. Exits with 127 where the command is not found and 126 where it can't be run, like a shell.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
NOT_FOUND, NOT_RUNNABLE = 127, 126


def die_with(parent_pid: int) -> None:
    """Ask the kernel for SIGKILL when the parent's thread ends; exit if it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent_pid:
        sys.exit("the parent process has ended")


def default_signals() -> None:
    """Undo what the daemon and this interpreter ignore or block: exec would hand it down."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def given_environment() -> dict[bytes, bytes]:
    """The environment as it was given: this interpreter may have added LC_CTYPE to its own."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def main(parent_pid: int, argv: list[str]) -> int:
    die_with(parent_pid)
    default_signals()
    try:
        os.execvpe(argv[0], argv, given_environment())  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]!r}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[3:]))
