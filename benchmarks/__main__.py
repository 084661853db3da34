"""``python -m benchmarks``: every figure of the data plane beside its limit or its peers.

Prints tables, and one JSON object on the last line. ``--write docs/performance.md`` puts the tables
into that page in place of those of an earlier run.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import copies, ddp, goals, int8_link, push_pull, quick, server_memory, wire
from benchmarks.peers import PEERS
from benchmarks.processes import machine_cpu_s
from benchmarks.report import Show, Table, printed

BEGIN, END = "<!-- begin: python -m benchmarks --write -->", "<!-- end -->"
Subject = Callable[[argparse.Namespace, Show], dict[str, Any]]


def _push_pull(options: argparse.Namespace, show: Show) -> dict[str, Any]:
    nbytes = int(options.megabytes * 1e6)
    plan = push_pull.Plan(nbytes=nbytes, rounds=options.rounds, peers=options.peers)
    found = push_pull.measure(plan, show)
    return found | {"cpu_s_per_gb": found.get("cpu_s_per_gb_shm")}


def _wire(options: argparse.Namespace, show: Show) -> dict[str, Any]:
    return wire.measure_all(wire.LOAD, options.rounds, show)


SUBJECTS: Mapping[str, Subject] = {
    "push-pull": _push_pull,
    "ddp": lambda options, show: ddp.measure(ddp.Plan(rounds=options.rounds), show),
    "int8": lambda options, show: int8_link.measure(int8_link.Plan(rounds=options.rounds), show),
    "copies": lambda options, show: copies.measure(copies.Plan(rounds=options.rounds), show),
    "memory": lambda options, show: server_memory.measure(
        server_memory.Plan(nbytes=int(options.memory_megabytes * 1e6)), show
    ),
    "wire": _wire,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("subjects", nargs="*", metavar="SUBJECT", help=", ".join(SUBJECTS))
    parser.add_argument("--megabytes", type=float, default=100.0, help="of the dense push-pull")
    parser.add_argument("--memory-megabytes", type=float, default=400.0, help="of Adam's values")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--peers", nargs="*", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the tables into this page")
    parser.add_argument("--quick", action="store_true", help="ratios alone, against those recorded")
    parser.add_argument("--record", action="store_true", help="with --quick: record what is found")
    options = parser.parse_args()
    for name in options.subjects:
        if name not in SUBJECTS:
            parser.error(f"no subject {name!r} (limit: {', '.join(SUBJECTS)})")
    if options.quick:
        sys.exit(quick.check(record=options.record))
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # contestants end too
    tables: list[Table] = []

    def show(table: Table) -> None:
        printed(table)
        tables.append(table)

    busy, stolen = machine_cpu_s()
    found: dict[str, Any] = {"benchmark": "all", **machine()}
    for name in options.subjects or SUBJECTS:
        found |= SUBJECTS[name](options, show)
        if options.write:  # what was measured stays, should a later subject be cut off
            write(options.write, found, [goals.table(found), *tables])
    busy_after, stolen_after = machine_cpu_s()
    found |= {"busy_s": round(busy_after - busy), "stolen_s": round(stolen_after - stolen)}
    summary = goals.table(found)
    printed(summary)
    print(json.dumps(found))


def machine() -> dict[str, Any]:
    """When and where, and how busy it is before anything is measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cpu": models[0] if models else platform.machine(),
        "cores": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def write(page: Path, found: Mapping[str, Any], tables: list[Table]) -> None:
    """Replace what is between the page's two marks. Raises ValueError where it has none."""
    text = page.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN!r} and {END!r}")
    where = (
        f"{found['date']}, {found['cpu']}, {found['cores']} cores, load {found['load_1m']} before"
        f" it began, Python {found['python']}."
    )
    parts = [where, *(f"**{table.title}**\n\n{table.markdown()}" for table in tables)]
    page.write_text(f"{before}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{after}")


if __name__ == "__main__":
    main()
