"""Push and pull on one machine: elasticps beside bare sockets, memory's limit, and its peers.

One server, one worker, float32, SGD applied; every contestant moves the same random bytes in turns
of the same run. See ``python -m benchmarks push-pull --help``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks import cluster, memory
from benchmarks.contest import Entry, Pace, Result, available, compete, ratio
from benchmarks.peers import LOCAL_ONLY, PEERS, SPINS
from benchmarks.report import Show, Table, printed

OURS, BARE = "elasticps", "bare socket"
COPY_ONE, COPY_ALL = "copy, 1 thread", "copy, all cores"
SMALL = 4096


@dataclass(frozen=True, kw_only=True)
class Plan:
    """``nbytes`` of the large size; ``peers`` who take part beside the limits."""

    nbytes: int = 100_000_000
    rounds: int = 7
    steps: int = 5
    small_rounds: int = 7
    small_steps: int = 150
    peers: Sequence[str] = tuple(PEERS)


def ours(nbytes: int, *, tcp: bool, **options: Any) -> Entry:
    arguments = ["--nbytes", str(nbytes)]
    transports = "tcp" if tcp else ""
    return cluster.entry(OURS, cluster.PUSH_PULL, arguments, transports=transports, **options)


def limits(nbytes: int, *, tcp: bool) -> list[Entry]:
    transport = "tcp" if tcp else "local"
    size = ("--nbytes", str(nbytes))
    found = [Entry(name=BARE, module="benchmarks.bare", options=(*size, "--transport", transport))]
    if not tcp and nbytes > SMALL:
        for name, threads in ((COPY_ONE, 1), (COPY_ALL, os.cpu_count() or 1)):
            options = (*size, "--threads", str(threads))
            found.append(Entry(name=name, module="benchmarks.memory", options=options))
    return found


def peers(names: Sequence[str], nbytes: int, *, tcp: bool) -> list[Entry]:
    transport = "tcp" if tcp else "local"
    return [
        Entry(
            name=name,
            module=PEERS[name],
            options=("--nbytes", str(nbytes), "--transport", transport),
            spins=name in SPINS,
        )
        for name in names
        if not (tcp and name in LOCAL_ONLY)
    ]


def contest(plan: Plan, nbytes: int, show: Show = printed, *, tcp: bool) -> dict[str, Result]:
    small = nbytes <= SMALL
    pace = (
        Pace(rounds=plan.small_rounds, steps=plan.small_steps)
        if small
        else Pace(rounds=plan.rounds, steps=plan.steps)
    )
    entries = [ours(nbytes, tcp=tcp), *limits(nbytes, tcp=tcp), *peers(plan.peers, nbytes, tcp=tcp)]
    results = compete(entries, pace)
    show(_table(results, nbytes, tcp=tcp))
    return results


def measure(plan: Plan, show: Show = printed) -> dict[str, Any]:
    """The keys of the report, and below ``push_pull`` what they were made of."""
    found: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for tcp in (False, True):
        way = "tcp" if tcp else "shm"
        large = contest(plan, plan.nbytes, show, tcp=tcp)
        small = contest(plan, SMALL, show, tcp=tcp)
        found |= ratios(large, plan.nbytes, way)
        mine = small[OURS]
        found[f"small_{way}_p50_us"] = None if mine.unavailable else _us(mine.median_s)
        found |= small_ratio(small, way)
        details[way] = {
            "large": summary(large, plan.nbytes),
            "small": summary(small, SMALL),
            "transport": used(large[OURS]),
        }
    transports = {way: detail.pop("transport") for way, detail in details.items()}
    return {**found, "transports": transports, "push_pull": details}


def ratios(results: Mapping[str, Result], nbytes: int, way: str) -> dict[str, Any]:
    """``way`` is the prefix of the keys: shm, whatever is best on one machine, or tcp."""
    there = available(results)
    found: dict[str, Any] = {f"{way}_vs_best_peer": None}
    mine = there.get(OURS)
    if mine is None:
        return found
    rivals = {name: ratio(there[name], mine) for name in PEERS if name in there}
    if rivals:
        best = min(rivals, key=lambda name: rivals[name])
        found |= {f"{way}_vs_best_peer": round(rivals[best], 3), f"{way}_best_peer": best}
    if BARE in there:
        key = "tcp_vs_socket" if way == "tcp" else "local_vs_unix_socket"
        found[key] = round(ratio(there[BARE], mine), 3)
    for name, key in ((COPY_ALL, "shm_vs_roofline"), (COPY_ONE, "shm_vs_roofline_one_thread")):
        if name in there:
            # A copy touches 8 bytes an element, a step on shared memory twice that.
            found[key] = round(ratio(there[name], mine) * memory.TOUCHED_PER_ELEMENT / 8, 3)
    found[f"cpu_s_per_gb_{way}"] = round(mine.cpu_s_per_gb(nbytes), 3)
    return found


def small_ratio(results: Mapping[str, Result], way: str) -> dict[str, Any]:
    """How near 4 KB come to a bare socket's time."""
    there = available(results)
    if OURS not in there or BARE not in there:
        return {}
    return {f"small_{way}_vs_socket": round(ratio(there[BARE], there[OURS]), 4)}


def summary(results: Mapping[str, Result], nbytes: int) -> dict[str, Any]:
    """Numbers of each contestant, for the JSON object."""
    return {
        name: {"unavailable": each.unavailable}
        if each.unavailable
        else {
            "gb_per_s": round(each.gb_per_s(nbytes), 3),
            "p50_us": _us(each.median_s),
            "p99_us": _us(each.percentile_s(99)),
            "spread": round(each.spread, 3),
            "cpu_s_per_gb": round(each.cpu_s_per_gb(nbytes), 3),
            "cores": round(each.cpu_s / each.wall_s, 2),
        }
        for name, each in results.items()
    }


def used(result: Result) -> str:
    """By which transport most bytes went, out of the servers' own count; "unix" if none is told."""
    counts: dict[str, float] = result.more.get("transports", {})
    return max(counts, key=lambda name: counts[name], default="unix")


def _table(results: Mapping[str, Result], nbytes: int, *, tcp: bool) -> Table:
    way = "TCP" if tcp else f"the best way on one machine (elasticps: {used(results[OURS])})"
    table = Table(
        title=f"{nbytes / 1e6:g} MB pushed and pulled over {way}",
        columns=("", "GB/s", "p50 us", "p99 us", "spread", "CPU s/GB", "cores"),
    )
    for name, row in summary(results, nbytes).items():
        if "unavailable" in row:
            table.add(name, row["unavailable"])
        else:
            table.add(name, *row.values())
    return table


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 1)
