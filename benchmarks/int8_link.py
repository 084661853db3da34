"""What a codec saves where the link is slow: a step with int8 beside one without, over 1 Gbit/s.

The worker and the blocks are on two nodes, in network namespaces with a shaped link between them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from benchmarks import cluster, slow_link
from benchmarks.contest import Pace, available, compete, ratio
from benchmarks.report import Show, Table, printed


@dataclass(frozen=True, kw_only=True)
class Plan:
    nbytes: int = 32 << 20
    rate: str = "1gbit"
    codec: str = "int8"
    rounds: int = 5
    steps: int = 3


def measure(plan: Plan, show: Show = printed) -> dict[str, Any]:
    reason = slow_link.can_be_made()
    if reason:
        print(f"\nint8 over a slow link: not measured, {reason}")
        return {"int8_speedup_1gbit": None, "int8_link": reason}
    arguments = ["--nbytes", str(plan.nbytes), "--approximate"]
    entries = [
        cluster.entry(codec, cluster.PUSH_PULL, arguments, codec=codec, link=plan.rate)
        for codec in ("none", plan.codec)
    ]
    results = compete(entries, Pace(rounds=plan.rounds, steps=plan.steps))
    table = Table(
        title=f"{plan.nbytes / 1e6:.0f} MB pushed and pulled over {plan.rate}: tbf on veth, netns",
        columns=("codec", "GB/s", "ms", "spread"),
    )
    for name, each in results.items():
        if each.unavailable:
            table.add(name, each.unavailable)
        else:
            cells = each.gb_per_s(plan.nbytes), each.median_s * 1e3, round(each.spread, 3)
            table.add(name, *cells)
    show(table)
    there = available(results)
    known = len(there) == len(results)
    speedup = round(ratio(there["none"], there[plan.codec]), 3) if known else None
    return {"int8_speedup_1gbit": speedup, "int8_link": f"{plan.rate}, tbf on veth in a netns"}
