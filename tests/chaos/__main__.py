"""``python -m tests.chaos --minutes N --seed N [--short]``: its last line is one JSON object.

Progress and violations go to standard error. The exit code is 1 after any violation.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from elasticps.errors import ElasticError
from tests.chaos import network
from tests.chaos.campaign import Deck, Episode, Mode, Record, say
from tests.chaos.catalogue import Need, chosen, found_here, left_out
from tests.chaos.clock import find_library
from tests.chaos.cluster import ChaosError, Cluster, started
from tests.chaos.vitals import Vitals

NODES = 3
EPISODE_S = 150.0
LEAST_MINUTES_FOR_GROWTH = 5.0
MODES = [
    Mode(consistency="sync"),
    Mode(consistency="async"),
    Mode(consistency="sync", replicas=3),
    Mode(consistency="bounded"),
    Mode(consistency="dropping"),
]
SHORT_MODES = [Mode(consistency="async"), Mode(consistency="sync")]
"""That which feels every fault comes last, for what is left."""


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long faults are caused")
    parser.add_argument("--seed", type=int, default=1, help="decides the order of the faults")
    parser.add_argument("--short", action="store_true", help="each of the main faults once")
    parser.add_argument("--only", nargs="*", default=[], metavar="FAULT", help="these alone")
    parser.add_argument("--mode", default="", help="sync, sync-3, async, bounded, dropping")
    parser.add_argument("--loopback", action="store_true", help="no network namespaces")
    parser.add_argument("--keep", action="store_true", help="keep the logs of a good run too")
    parser.add_argument(
        "--faketime", type=Path, default=find_library(), metavar="LIB", help="libfaketime.so.1"
    )
    return parser.parse_args()


class Campaign:
    """All episodes on one cluster."""

    def __init__(self, given: argparse.Namespace, directory: Path, have: set[Need]) -> None:
        self.record = Record()
        self.vitals = Vitals()
        self.probes = 0
        self._given = given
        self._directory = directory
        self._have = have
        self._rows = chosen(have, short=given.short, only=given.only)
        modes = SHORT_MODES if given.short else MODES
        self._modes = [
            mode
            for mode in modes
            if mode.name.startswith(given.mode) and any(map(mode.feels, self._rows))
        ]
        if not self._modes:
            raise SystemExit("no job of such a mode would feel any of these faults")

    async def run(self) -> None:
        hub = network.Network() if Need.NAMESPACES in self._have else None
        faketime = self._given.faketime if Need.FAKETIME in self._have else None
        members = 1 if self._given.short else 3
        async with started(NODES, members, self._directory, hub, faketime) as cluster:
            say(f"{NODES} nodes, {members} etcd members, logs in {self._directory}")
            seed = self._given.seed
            beside = [
                asyncio.create_task(cluster.ownership.ask(f"{seed}:probes")),
                asyncio.create_task(self.vitals.watch(cluster)),
            ]
            try:
                await failing_with(beside, self._episodes(cluster))
            except (ChaosError, ElasticError, OSError) as error:
                self.record.failures.append(str(error))
                say(f"FAILED: {error}")
            finally:
                for task in beside:
                    task.cancel()
                await asyncio.wait(beside)
            for violation in cluster.ownership.violations:
                say(f"VIOLATION: {violation}")
            self.record.failures += cluster.ownership.violations
            self.probes = cluster.ownership.probes

    async def _episodes(self, cluster: Cluster) -> None:
        deck = Deck(self._rows, self._given.seed)
        chance = random.Random(f"{self._given.seed}:targets")
        end = time.monotonic() + 60.0 * self._given.minutes
        number = 0
        per_mode = -(-len(self._rows) // len(self._modes))
        while self._goes_on(number, end):
            mode = self._modes[number % len(self._modes)]
            episode = Episode(cluster, mode, number, self.record, chance)
            stop_at = min(end, time.monotonic() + EPISODE_S)

            def enough(count: int, stop_at: float = stop_at) -> bool:
                return count >= per_mode if self._given.short else time.monotonic() > stop_at

            await episode.run(deck, enough)
            number += 1

    def _goes_on(self, episodes: int, end: float) -> bool:
        if self._given.short:
            return episodes < len(self._modes)
        return episodes == 0 or time.monotonic() < end

    def report(self, minutes: float) -> dict[str, Any]:
        record, verdict = self.record, self.record.verdict
        growths = self.vitals.growths()
        skipped = left_out(self._have)
        return {
            "acknowledged": verdict.acknowledged,
            "unknown": verdict.unknown,
            "lost": verdict.lost,
            "duplicated": verdict.duplicated,
            "torn_rounds": verdict.torn_rounds,
            "bank_violations": verdict.bank_violations,
            "version_violations": verdict.version_violations,
            "failures": record.failures,
            "kills": record.kills,
            "faults": dict(sorted(record.kinds.items())),
            "faults_by_name": dict(sorted(record.faults.items())),
            **figures("failover_server", record.failovers["server"]),
            **figures("failover_node", record.failovers["node"]),
            "longest_outage_s": {
                name: max(found) for name, found in sorted(record.outages.items())
            },
            "ownership_probes": self.probes,
            "growth": {
                growth.process: {
                    "fds": growth.fds,
                    "threads": growth.threads,
                    "rss_bytes": growth.rss_bytes,
                    "rss_ratio": growth.rss_ratio,
                }
                for growth in growths
            },
            "skipped": skipped,
            "seed": self._given.seed,
            "minutes": round(minutes, 1),
        }

    def is_clean(self, minutes: float) -> bool:
        record = self.record
        leaks = minutes >= LEAST_MINUTES_FOR_GROWTH and any(
            growth.leaks for growth in self.vitals.growths()
        )
        void = not record.verdict.acknowledged or not record.faults
        return not (record.failures or record.verdict.violations or leaks or void)


async def failing_with(beside: list[asyncio.Task[None]], work: Awaitable[None]) -> None:
    """Do the work; what fails beside it, which never ends by itself, fails it."""
    working = asyncio.ensure_future(work)
    try:
        await asyncio.wait({working, *beside}, return_when=asyncio.FIRST_COMPLETED)
        for task in beside:
            if task.done():
                task.result()
        await working
    finally:
        working.cancel()
        await asyncio.wait({working})


def figures(name: str, seconds: list[float]) -> dict[str, float | int | None]:
    ordered = sorted(seconds)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))] if ordered else None
    return {
        f"{name}_n": len(ordered),
        f"{name}_p50_s": round(statistics.median(ordered), 3) if ordered else None,
        f"{name}_p99_s": None if last is None else round(last, 3),
    }


def main() -> int:
    given = options()
    if not network.is_inside():
        obstacle = "as asked" if given.loopback else network.can_be_made()
        if not obstacle:
            network.enter("tests.chaos", sys.argv[1:])
        say(f"all nodes share loopback: {obstacle}")
    have = found_here(given.faketime, namespaces=network.is_inside())
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    campaign = Campaign(given, directory, have)
    for what in left_out(have):
        say(f"SKIPPED {what}")
    began = time.monotonic()
    clean = False
    try:
        asyncio.run(campaign.run())
        minutes = (time.monotonic() - began) / 60
        clean = campaign.is_clean(minutes)
    finally:
        if clean and not given.keep:
            shutil.rmtree(directory)
        else:
            say(f"the logs are in {directory}")
    sys.stdout.write(json.dumps(campaign.report(minutes)) + "\n")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
