"""How much memory a shard server takes beside what it must hold: values and Adam's two moments.

The growth is that of its own memory over a server of the same kind whose job has one page. The
worker's memory that it has mapped is the worker's, and is there once.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import cluster
from benchmarks.contest import Contestant, Unavailable
from benchmarks.processes import command, own_bytes, peak_own_bytes
from benchmarks.report import Show, Table, printed

TENSORS_HELD = 3
"""Adam's: the value and two moments, of the value's size each."""
PAGE = 4096


@dataclass(frozen=True, kw_only=True)
class Plan:
    nbytes: int = 400_000_000
    steps: int = 4


def measure(plan: Plan, show: Show = printed) -> dict[str, Any]:
    try:
        base, _ = _server_bytes(PAGE, plan.steps)
        now, peak = _server_bytes(plan.nbytes, plan.steps)
    except Unavailable as error:
        print(f"\nthe shard server's memory: not measured, {error}")
        return {"server_rss_vs_needed": None}
    needed = TENSORS_HELD * plan.nbytes
    table = Table(
        title=f"a shard server with {plan.nbytes / 1e6:g} MB of values under Adam",
        columns=("", "MB", "of needed"),
    )
    table.add("needed: value and two moments", needed / 1e6, 1.0)
    rows = {"its own, less a server's of one page": now - base, "at its peak": peak - base}
    for name, nbytes in rows.items():
        table.add(name, nbytes / 1e6, round(nbytes / needed, 3))
    show(table)
    return {
        "server_rss_vs_needed": round((now - base) / needed, 3),
        "server_peak_vs_needed": round((peak - base) / needed, 3),
        "server_rss_needed_mb": needed / 1e6,
    }


def _server_bytes(nbytes: int, steps: int) -> tuple[int, int]:
    """Of the shard server after so many steps: its own memory now, and at its peak."""
    arguments = ["--nbytes", str(nbytes), "--optimizer", "adam"]
    entry = cluster.entry("elasticps", cluster.PUSH_PULL, arguments)
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        contestant = Contestant(entry, Path(directory))
        try:
            contestant.start()
            contestant.turn(steps)
            (server,) = (pid for pid in contestant.pids if "elasticps.server" in command(pid))
            found = own_bytes(server), peak_own_bytes(server)
            contestant.finish()
            return found
        finally:
            contestant.close()
