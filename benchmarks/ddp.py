"""A training step of two workers beside torch DDP's: the larger of two models' ratios.

Data-parallel and synchronous, fused AdamW on either side, on one machine. Also told is what a step
takes without any exchange, and how much each of the two adds to that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import cluster, training
from benchmarks.contest import Entry, Pace, Result, compete, ratio
from benchmarks.report import Show, Table, printed

OURS, DDP, LOCAL = "elasticps", "torch DDP", "no exchange"


@dataclass(frozen=True, kw_only=True)
class Plan:
    models: Sequence[str] = tuple(training.BATCH)
    rounds: int = 7
    steps: int = 8


def measure(plan: Plan, show: Show = printed) -> dict[str, Any]:
    results = {model: _contest(model, plan) for model in plan.models}
    for model, found in results.items():
        show(_table(model, found))
    ratios = [_ratio(found[OURS], found[DDP]) for found in results.values()]
    known = [each for each in ratios if each is not None]
    return {
        "step_vs_ddp": max(known, default=None),
        "step_vs_ddp_by_model": dict(zip(results, ratios, strict=True)),
        "overhead_over_local_ms": {
            model: {name: overhead_ms(found[name], found[LOCAL]) for name in (OURS, DDP)}
            for model, found in results.items()
        },
    }


def overhead_ms(result: Result, local: Result) -> float | None:
    """What a step takes beyond one that exchanges nothing."""
    if result.unavailable or local.unavailable:
        return None
    return round((result.median_s - local.median_s) * 1e3, 2)


def _contest(model: str, plan: Plan) -> dict[str, Result]:
    entries = [
        cluster.entry(OURS, training.SCRIPT, ["--model", model], workers=training.WORKERS),
        *(
            Entry(
                name=name,
                module="benchmarks.training",
                options=("--how", how, "--model", model),
                parts=training.WORKERS,
            )
            for name, how in ((DDP, "ddp"), (LOCAL, "local"))
        ),
    ]
    return compete(entries, Pace(rounds=plan.rounds, steps=plan.steps))


def _ratio(mine: Result, its: Result) -> float | None:
    return None if mine.unavailable or its.unavailable else round(ratio(mine, its), 3)


def _table(model: str, results: dict[str, Result]) -> Table:
    table = Table(
        title=f"a step of {model} on {training.WORKERS} workers, fused AdamW",
        columns=("", "ms", "spread", "overhead ms", "CPU s/step"),
    )
    for name, each in results.items():
        if each.unavailable:
            table.add(name, each.unavailable)
        else:
            over = overhead_ms(each, results[LOCAL])
            cpu_s = each.cpu_s / len(each.seconds)
            table.add(name, each.median_s * 1e3, round(each.spread, 3), over, cpu_s)
    return table
