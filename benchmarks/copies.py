"""What a second copy costs: a synchronous step with two replicas beside one with one.

Two clusters of two nodes, one worker on each; ``benchmarks.replication`` is the same without
daemons, and says what crosses the wire.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import cluster
from benchmarks.contest import Pace, available, compete, ratio
from benchmarks.report import Show, Table, printed

NODES = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    nbytes: int = 64 << 20
    rounds: int = 7
    steps: int = 4


def measure(plan: Plan, show: Show = printed) -> dict[str, Any]:
    arguments = ["--nbytes", str(plan.nbytes)]
    entries = [
        cluster.entry(f"R={replicas}", cluster.PUSH_PULL, arguments, nodes=NODES, replicas=replicas)
        for replicas in (1, 2)
    ]
    results = compete(entries, Pace(rounds=plan.rounds, steps=plan.steps))
    table = Table(
        title=f"{plan.nbytes / 1e6:.0f} MB pushed and pulled with one copy and with two",
        columns=("", "ms", "GB/s", "spread", "CPU s/GB"),
    )
    for name, each in results.items():
        if each.unavailable:
            table.add(name, each.unavailable)
            continue
        rate, cpu = each.gb_per_s(plan.nbytes), each.cpu_s_per_gb(plan.nbytes)
        table.add(name, each.median_s * 1e3, rate, round(each.spread, 3), cpu)
    show(table)
    there = available(results)
    known = len(there) == len(results)
    return {"r2_vs_r1": round(ratio(there["R=2"], there["R=1"]), 3) if known else None}
