"""What a process holds over its life, from /proc: descriptors, threads, memory."""

from __future__ import annotations

import asyncio
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.chaos.cluster import WITNESS, Cluster
from tests.chaos.scene import descriptors

PERIOD_S = 1.0
WARM_UP_S = 20.0
LEAST_SAMPLES = 30
MOST_FDS, MOST_THREADS = 8, 4
MOST_RSS = 1.15
MOST_RSS_BYTES = 24 << 20
"""Memory may grow by the larger of the two: allocators keep some of what they had."""


@dataclass(frozen=True, slots=True)
class Sample:
    fds: int
    threads: int
    rss: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Growth:
    """From the median of the first third to that of the last."""

    process: str
    fds: float
    threads: float
    rss_bytes: float
    rss_ratio: float

    @property
    def leaks(self) -> bool:
        more = self.rss_ratio > MOST_RSS and self.rss_bytes > MOST_RSS_BYTES
        return self.fds > MOST_FDS or self.threads > MOST_THREADS or more


@dataclass(slots=True)
class Vitals:
    """The witness's daemon and shard server, as long as each lives."""

    samples: dict[tuple[str, int], list[Sample]] = field(default_factory=dict)

    async def watch(self, cluster: Cluster) -> None:
        """Sample until cancelled."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(PERIOD_S)
            if time.monotonic() - began < WARM_UP_S:
                continue
            pids = cluster.pids(WITNESS)
            for name, pid in [("daemon", pids.daemon), *(("server", p) for p in pids.servers)]:
                with suppress(FileNotFoundError, ProcessLookupError):
                    self.samples.setdefault((name, pid), []).append(sample(pid))

    def growths(self) -> list[Growth]:
        return [
            _growth(f"{name} {pid}", rows)
            for (name, pid), rows in self.samples.items()
            if len(rows) >= LEAST_SAMPLES
        ]


def sample(pid: int) -> Sample:
    text = Path(f"/proc/{pid}/status").read_text()
    rows = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    return Sample(descriptors(pid), int(rows["Threads"]), 1024 * int(rows["VmRSS"].split()[0]))


def _growth(process: str, rows: list[Sample]) -> Growth:
    third = len(rows) // 3
    first, last = rows[:third], rows[-third:]

    def median(part: list[Sample], name: str) -> float:
        return float(statistics.median(getattr(row, name) for row in part))

    def grown(name: str) -> float:
        return median(last, name) - median(first, name)

    ratio = median(last, "rss") / median(first, "rss")
    return Growth(
        process=process,
        fds=grown("fds"),
        threads=grown("threads"),
        rss_bytes=grown("rss"),
        rss_ratio=round(ratio, 3),
    )
