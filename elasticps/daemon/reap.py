"""Becomes a command that dies with its parent: ``python -I -S reap.py PARENT_PID -- argv...``.

With ``--group`` in place of ``--`` it heads a process group that dies with it, whoever is left to
see that: the kernel's signal reaches the command alone, and nothing that it forks. So a guard is
left in the group, which kills it, and itself with it, as soon as the command has ended.

Run by path and alone, so that it starts in about 15 ms and imports nothing of elasticps. It keeps
its process id, and leaves argv, environment, signals and standard streams as a fresh program has
them. Exits with 127 where the command is not found and 126 where it can't be run, like a shell.
"""

from __future__ import annotations

import ctypes
import os
import select
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


def leave_guard() -> None:
    """Leave a process in this group that kills the group when this process has ended.

    While it is there the group's number can become nobody else's.
    """
    command = os.pidfd_open(os.getpid())
    # A grandchild: the command must not find a child that it does not know.
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            guard(command)
        os._exit(0)
    os.waitpid(between, 0)
    os.close(command)


def guard(command: int) -> None:
    """Wait for the end of the process behind the descriptor, then kill the group."""
    try:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        os.chdir("/")
        nowhere = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # the command's end must be the end of its output
            os.dup2(nowhere, stream)
        poll = select.poll()
        poll.register(command, select.POLLIN)
        poll.poll()
    finally:
        os.killpg(0, signal.SIGKILL)


def given_environment() -> dict[bytes, bytes]:
    """The environment as it was given: this interpreter may have added LC_CTYPE to its own."""
    entries = Path("/proc/self/environ").read_bytes().split(b"\0")
    return dict(entry.split(b"=", 1) for entry in entries if b"=" in entry)


def main(parent_pid: int, mode: str, argv: list[str]) -> int:
    die_with(parent_pid)
    default_signals()
    if mode == "--group":
        leave_guard()
    try:
        os.execvpe(argv[0], argv, given_environment())  # noqa: S606 - no shell is the point
    except OSError as error:
        sys.stderr.write(f"cannot run {argv[0]!r}: {error.strerror}\n")
        return NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_RUNNABLE


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2], sys.argv[3:]))
