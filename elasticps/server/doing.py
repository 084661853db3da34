"""What a server's process is at, in a file that is there when the process is not any more."""

from __future__ import annotations

import mmap
from pathlib import Path

SIZE = 512
"""Bytes of a sentence; a longer one is cut."""


class Doing:
    """Kept by the process: ``begin`` before what may never return, ``end`` after it.

    The kernel keeps what was written to the mapped file when the process dies; a machine that goes
    down takes it along, and with it all that it would explain. Without a ``path`` nothing is kept.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._bytes: bytearray | mmap.mmap = bytearray(SIZE)
        self._job = ""
        if path is not None:
            path.write_bytes(bytes(SIZE))
            with path.open("r+b") as opened:
                self._bytes = mmap.mmap(opened.fileno(), SIZE)

    def of_job(self, name: str) -> Doing:
        """The same, for what is done for a job."""
        same = Doing()
        same._bytes, same._job = self._bytes, f" of job {name}"
        return same

    def sentence(self, text: str) -> bytes:
        """``text`` as ``begin`` takes it."""
        return f"{text}{self._job}".encode()[:SIZE].ljust(SIZE, b"\0")

    def begin(self, what: bytes) -> None:
        """``what`` is of ``sentence``'s making."""
        self._bytes[:SIZE] = what

    def end(self) -> None:
        self._bytes[0] = 0


def was_doing(path: Path) -> str:
    """What a process was at when it ended; empty: nothing that it had said."""
    try:
        return path.read_bytes().partition(b"\0")[0].decode(errors="ignore")
    except FileNotFoundError:
        return ""
