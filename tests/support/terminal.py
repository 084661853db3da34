"""The command line as a process of its own, on a terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

COMMAND = [
    sys.executable,
    "-c",
    "import sys; from elasticps.cli.main import main; sys.exit(main())",
]


def on_terminal(args: list[str], **env: str) -> str:
    """What the command writes to a terminal of 80 columns."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, *args],
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", **env},
    )
    os.close(theirs)
    written = b""
    try:
        while chunk := os.read(ours, 4096):
            written += chunk
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(ours)
    assert process.wait() == 0, written
    return written.decode()
