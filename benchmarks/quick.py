"""The guard against slowness: ``make bench-quick`` holds a few ratios against recorded ones.

Ratios alone, each of one run: they change less than times when the machine is busy. One that is
below half of what was recorded is measured once more, and fails if it is again.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks import push_pull
from benchmarks.report import Table, printed

RECORDED = Path(__file__).with_name("recorded.json")
LEAST_OF_RECORDED = 0.5
PLAN = push_pull.Plan(nbytes=16 << 20, rounds=3, steps=4, small_rounds=3, small_steps=60, peers=())
RATIOS = (
    "local_vs_unix_socket",
    "shm_vs_roofline",
    "tcp_vs_socket",
    "small_shm_vs_socket",
    "small_tcp_vs_socket",
)


def check(*, record: bool) -> int:
    """The exit code: 1 where a ratio has fallen below half of the recorded one, or is missing."""
    found = ratios()
    if record:
        RECORDED.write_text(json.dumps(found, indent=2) + "\n")
    recorded: dict[str, float] = json.loads(RECORDED.read_text())
    low = below(found, recorded)
    if low:
        print(f"again, for {', '.join(low)}")
        again = ratios()
        found = {key: max(found.get(key, 0.0), again.get(key, 0.0)) for key in RATIOS}
        low = below(found, recorded)
    table = Table(title="ratios to a limit of the same run", columns=("", "now", "recorded", ""))
    for key in RATIOS:
        verdict = "below half" if key in low else "ok"
        table.add(key, found.get(key, 0.0), recorded.get(key, 0.0), verdict)
    printed(table)
    print(json.dumps({"benchmark": "quick", **found, "below_half": low}))
    return 1 if low else 0


def ratios() -> dict[str, float]:
    found: dict[str, Any] = push_pull.measure(PLAN)
    return {key: found[key] for key in RATIOS if found.get(key) is not None}


def below(found: dict[str, float], recorded: dict[str, float]) -> list[str]:
    """Those that are less than half of the recorded, or were not measured."""
    return [
        key for key in RATIOS if found.get(key, 0.0) < LEAST_OF_RECORDED * recorded.get(key, 0.0)
    ]
