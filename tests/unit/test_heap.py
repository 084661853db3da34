"""What a shard server frees is the system's again."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys, torch
from pathlib import Path
from elasticps.server.heap import give_large_their_own_pages

def held():
    rows = Path("/proc/self/status").read_text().splitlines()
    return next(int(row.split()[1]) << 10 for row in rows if row.startswith("RssAnon:"))

if sys.argv[1] == "own":
    give_large_their_own_pages()
torch.ones(2 << 20)  # freed at once: glibc takes the next of this size from the heap
before = held()
blocks = [(torch.ones(1 << 20), torch.ones(8 << 10)) for _ in range(30)]
peak = held() - before
small = [each for _, each in blocks]
del blocks
print((held() - before) / peak)
"""


def left(which: str) -> float:
    """The part of the memory of blocks that is kept when they are gone, and others stay."""
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT, which], capture_output=True, text=True, check=True
    )
    return float(ran.stdout)


def test_large_blocks_leave_no_holes() -> None:
    assert left("own") < 0.1
    assert left("glibc's way") > 0.5, "glibc does it by itself now"
