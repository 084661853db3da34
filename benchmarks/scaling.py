"""The scaling curves: workers and servers, sizes, and numbers of blocks, as one picture.

``python -m benchmarks.scaling``: a step pushes and pulls the whole model, SGD applied. Sizes that
would need more than half of the machine's free memory are left out, and named; so are points that
would, by the smaller ones of their curve, end after ``--minutes``. ``--out`` is a PNG.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import cluster
from benchmarks.contest import ROOT, Contestant, Pace, Result, Unavailable
from benchmarks.report import Table

STEPS_AT_LEAST = 4
"""Of a slow point: to give the blocks their values, one to warm up, one that counts, to end."""
COPIES = 8
"""Of the model, that a worker and its server hold: gradients, values, blocks on their way."""
MEMORY_SHARE = 0.5
POINT_S = 10.0
"""About what a point's steps may take: those of slow ones are fewer, one at least."""
PARAMETERS = (1_000_000, 4_000_000, 16_000_000, 64_000_000, 100_000_000, 400_000_000)
WORKERS, SERVERS = (1, 2, 4), (1, 2)
BLOCKS = (1, 10, 100, 1_000, 10_000, 100_000)
BLOCKS_NBYTES = 400_000_000
WORKERS_NBYTES = 32 << 20
MIN_BLOCK = 4096
PICTURE = ROOT / "docs" / "images" / "scaling.png"


@dataclass(frozen=True, kw_only=True)
class Point:
    """One cell of a curve: ``x`` is what the curve goes along, ``line`` its name."""

    curve: str
    line: str
    x: int
    nbytes: int
    block_bytes: int = 4 << 20
    workers: int = 1
    servers: int = 1


def points(free_bytes: int, most: int = max(PARAMETERS)) -> Iterator[Point]:
    """The cells; the model that is cut into blocks fits the machine and ``most`` parameters."""
    for servers in SERVERS:
        for workers in WORKERS:
            yield Point(
                curve="workers",
                line=f"{servers} server{'s' if servers > 1 else ''}",
                x=workers,
                nbytes=WORKERS_NBYTES,
                workers=workers,
                servers=servers,
            )
    for numel in PARAMETERS:
        yield Point(curve="size", line="1 worker, 1 server", x=numel, nbytes=4 * numel)
    nbytes = min(BLOCKS_NBYTES, 4 * most, int(free_bytes * MEMORY_SHARE) // COPIES)
    of_blocks = (max(MIN_BLOCK, -(-nbytes // count // 4) * 4) for count in BLOCKS)
    for of_block in dict.fromkeys(of_blocks):  # no smaller than the smallest that there may be
        if of_block <= 128 << 20:
            yield Point(
                curve="blocks",
                line=f"{nbytes / 1e6:g} MB",
                x=-(-nbytes // of_block),
                nbytes=nbytes,
                block_bytes=of_block,
            )


def measured(point: Point, pace: Pace) -> Result:
    """At most ``pace``, and about ``POINT_S`` of it. Raises Unavailable."""
    entry = cluster.entry(
        "elasticps",
        cluster.PUSH_PULL,
        ["--nbytes", str(point.nbytes)],
        nodes=point.servers,
        workers=point.workers,
        block_bytes=point.block_bytes,
    )
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        contestant = Contestant(entry, Path(directory))
        try:
            contestant.start()
            (step_s,) = contestant.turn(1, counted=False)
            contestant.settle()
            steps = max(1, int(POINT_S / step_s))
            rounds = min(pace.rounds, steps)
            for _ in range(rounds):
                contestant.turn(min(pace.steps, steps // rounds))
            return contestant.finish()
        finally:
            contestant.close()


class Clock:
    """What has been spent of the time for all points, and what the next one will take."""

    def __init__(self, limit_s: float) -> None:
        self._end_s = time.monotonic() + limit_s
        self._last: tuple[Point, float, float] | None = None

    def took(self, point: Point, seconds: float, step_s: float) -> None:
        self._last = point, seconds, step_s

    def has_time_for(self, point: Point) -> bool:
        return time.monotonic() + self._expected_s(point) <= self._end_s

    def _expected_s(self, point: Point) -> float:
        """As the last one; where that is of the same curve, steps in proportion on top of it."""
        if self._last is None:
            return 0.0
        last, seconds, step_s = self._last
        growth = point.x / last.x if point.line == last.line else 1.0
        return seconds + STEPS_AT_LEAST * growth * step_s


def fits(point: Point, free_bytes: int) -> bool:
    return (point.workers + 1) * COPIES / 2 * point.nbytes <= MEMORY_SHARE * free_bytes


def free_memory() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo has no MemAvailable")


def draw(rows: Sequence[dict[str, Any]], picture: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    labels = {"size": "parameters", "blocks": "blocks", "workers": "workers"}
    figure, axes = pyplot.subplots(1, len(labels), figsize=(13, 4), constrained_layout=True)
    for axis, (curve, label) in zip(axes, labels.items(), strict=True):
        for line in dict.fromkeys(row["line"] for row in rows if row["curve"] == curve):
            here = [row for row in rows if row["curve"] == curve and row["line"] == line]
            axis.plot([r["x"] for r in here], [r["ms"] for r in here], marker="o", label=line)
        axis.set_xscale("log", base=2 if curve == "workers" else 10)
        axis.set_yscale("log")
        axis.set_xlabel(label)
        axis.set_ylabel("ms a step")
        axis.set_ylim(bottom=min((r["ms"] for r in rows if r["curve"] == curve), default=1) / 2)
        axis.grid(visible=True, which="both", alpha=0.3)
        axis.legend()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=PICTURE)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=9.0, help="for all points")
    parser.add_argument("--most", type=int, default=max(PARAMETERS), help="parameters at most")
    options = parser.parse_args()
    free = free_memory()
    rows = []
    table = Table(title="scaling", columns=("", "x", "MB", "ms", "spread", "GB/s", "CPU s/GB"))
    clock = Clock(60.0 * options.minutes)
    for point in points(free, options.most):
        name = f"{point.curve}: {point.line}"
        if not clock.has_time_for(point):
            print(f"  {name}, {point.x}: left out: would end after --minutes {options.minutes:g}")
            continue
        if not fits(point, free) or point.nbytes > 4 * options.most:
            print(f"  {name}, {point.x}: left out: --most, or {free >> 30} GiB free")
            continue
        began = time.monotonic()
        try:
            found = measured(point, Pace(rounds=options.rounds, steps=options.steps))
        except Unavailable as error:
            table.add(name, str(error))
            continue
        clock.took(point, time.monotonic() - began, found.median_s)
        # Each worker pushes and pulls all of it.
        moved = point.nbytes * point.workers
        row = {
            "curve": point.curve,
            "line": point.line,
            "x": point.x,
            "mb": point.nbytes / 1e6,
            "ms": round(found.median_s * 1e3, 3),
            "spread": round(found.spread, 3),
            "gb_per_s": round(found.gb_per_s(moved), 3),
            "cpu_s_per_gb": round(found.cpu_s_per_gb(moved), 3),
        }
        rows.append(row)
        table.add(name, *list(row.values())[2:])
        print(f"  {name}, {point.x}: {row['ms']} ms", flush=True)
    table.show()
    draw(rows, options.out)
    print(json.dumps({"benchmark": "scaling", "points": rows}))


if __name__ == "__main__":
    main()
