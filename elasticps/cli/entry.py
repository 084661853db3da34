"""Where the ``elasticps`` command begins: quiet when it is stopped while its modules still load."""

from __future__ import annotations

import os
import signal
from types import FrameType

from elasticps.starting import loading

INTERRUPTED = 130


def main() -> int:
    """Load the command line, run it, and return its exit code."""
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:  # else somebody has it ignored
        signal.signal(signal.SIGINT, _leave)
    with loading():
        from elasticps.cli.main import main

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return main()


def _leave(_number: int, _frame: FrameType | None) -> None:
    # Nothing has begun yet; an exception would be shown, or kept by a module that half loads.
    os._exit(INTERRUPTED)
