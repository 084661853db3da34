"""A program: kill the writer of a checkpoint at lines of its code in turn, on new directories.

Its arguments are a directory to work in, where ``<n>`` is what a writer left that died at its n-th
line, and how many lines are between two of them, 1: it dies at each. It forks, and so is a process
of its own: one with a single thread.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from functools import partial
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

import elasticps.checkpoint
from elasticps.checkpoint.directory import prune
from tests.support.checkpoints import fork, write_round

CODE = (str(Path(elasticps.checkpoint.__file__).parent), shutil.__file__)
OLD, NEW = 10, 20


def write_and_prune(root: Path) -> None:
    """Put a new checkpoint beside an old one, which then goes."""
    write_round(root, NEW)
    prune(root, keep=1)


def dying_at(line: int, root: Path) -> None:
    lines = 0

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.startswith(CODE):
            return None
        if event == "line":
            lines += 1
            if lines == line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    write_and_prune(root)


def main(place: Path, step: int) -> None:
    for line in count(1, step):
        root = place / str(line)
        write_round(root, OLD)
        if fork(partial(dying_at, line, root)) == 0:
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
