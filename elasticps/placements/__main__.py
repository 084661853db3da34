"""``python -m elasticps.placements CHOICE``: a situation on stdin, the answer on stdout."""

from __future__ import annotations

import os
import sys

import msgspec

from elasticps.placements.question import answer

NICE = 10
"""The machine's daemon comes first, and so do its shard server and workers."""


def main() -> None:
    os.nice(NICE)
    # What a plugin prints is for the log, never part of the answer.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        out.write(msgspec.msgpack.encode(answer(sys.argv[1], sys.stdin.buffer.read())))


if __name__ == "__main__":
    main()
