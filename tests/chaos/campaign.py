"""Jobs, one after the other, each under faults of all kinds, and what all of it came to."""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from elasticps.cli.answers import Submission
from elasticps.core.consistency import Consistency
from tests.chaos.catalogue import Row
from tests.chaos.checkers import Verdict, judge, load_final
from tests.chaos.cluster import LOOK_S, WAIT_S, ChaosError, Cluster
from tests.chaos.journal import Journals, Push
from tests.chaos.model import BLOCK_BYTES
from tests.chaos.scene import Done, Scene

SCRIPT = Path(__file__).with_name("worker.py")
FLOWING_PUSHES = 6
STALENESS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """What a job is promised while it is under chaos."""

    consistency: str
    replicas: int = 2

    @property
    def name(self) -> str:
        return f"{self.consistency}-{self.replicas}"

    @property
    def saves(self) -> bool:
        """Only a job whose workers are in step can make checkpoints."""
        return self.consistency == "sync"

    def feels(self, row: Row) -> bool:
        return self.saves or row.kind != "disk"

    def submission(self, directory: Path, saved: Path, workers: int) -> Submission:
        dropping = self.consistency == "dropping"
        consistency = Consistency.SYNC if dropping else Consistency(self.consistency)
        return Submission(
            argv=(str(SCRIPT), str(directory), self.consistency),
            cwd=str(directory),
            start_workers=workers,
            block_bytes=BLOCK_BYTES,
            replicas=self.replicas,
            consistency=consistency,
            staleness=STALENESS if consistency is Consistency.BOUNDED else 0,
            backup_workers=1 if dropping else 0,
            checkpoint_dir=str(saved) if self.saves else "",
            # Python's time.sleep fails under libfaketime: daemons and servers do not use it.
            env={"LD_PRELOAD": ""},
        )


@dataclass(slots=True)
class Record:
    """What a campaign has seen so far."""

    verdict: Verdict = field(default_factory=Verdict)
    faults: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    kills: int = 0
    failovers: dict[str, list[float]] = field(default_factory=lambda: {"server": [], "node": []})
    outages: dict[str, list[float]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)


class Deck:
    """Faults in an order that only the seed decides; all come before any comes again too often.

    One that a job would not feel waits for the next job that does.
    """

    def __init__(self, rows: list[Row], seed: int) -> None:
        self._rows = rows
        self._random = random.Random(f"{seed}:faults")
        self._left: list[Row] = []

    def draw(self, mode: Mode) -> Row:
        if not any(map(mode.feels, self._left)):
            fresh = [row for row in self._rows for _ in range(row.weight)]
            self._random.shuffle(fresh)
            self._left = fresh + self._left
        last = max(at for at, row in enumerate(self._left) if mode.feels(row))
        return self._left.pop(last)


class Episode:
    """One job, from its submission to the verdict on its numbers."""

    def __init__(
        self, cluster: Cluster, mode: Mode, number: int, record: Record, chance: random.Random
    ) -> None:
        self._cluster = cluster
        self._mode = mode
        self._record = record
        self._random = chance
        self._directory = cluster.directory / f"job-{number}"
        self._directory.mkdir()
        self._saved = cluster.saved / f"job-{number}"
        self._journals = Journals(self._directory)
        self._name = ""

    async def run(self, deck: Deck, enough: Callable[[int], bool]) -> None:
        """Cause faults until ``enough`` says so of their number, then end the job and judge."""
        submission = self._mode.submission(
            self._directory, self._saved, len(self._cluster.expected)
        )
        async with self._cluster.api() as api:
            self._name = (await api.submit(submission)).job
        say(f"{self._name}: {self._mode.consistency}, {self._mode.replicas} copies")
        await self._flows()
        count = 0
        while not enough(count):
            await self._suffer(deck.draw(self._mode))
            count += 1
        await self._end()

    async def _suffer(self, row: Row) -> None:
        scene = Scene(
            cluster=self._cluster,
            job=self._name,
            replicas=self._mode.replicas,
            saved=self._saved,
            random=self._random,
        )
        began, leader = time.monotonic(), self._cluster.view.leader
        try:
            done = await row.fault(scene)
        except ChaosError as error:
            raise ChaosError(f"{row.name}: {error}") from error
        outage_s = await self._written_since(row, done)
        self._note(row, done, outage_s)
        await self._cluster.revive()
        await self._flows()
        say(
            f"  {row.name} while {leader} led: {done.evidence}; pushes after {outage_s:.2f} s,"
            f" well after {time.monotonic() - began:.1f} s"
        )

    def _note(self, row: Row, done: Done, outage_s: float) -> None:
        record = self._record
        record.faults[row.name] += 1
        record.kinds[row.kind] += 1
        record.kills += done.kills
        record.outages.setdefault(row.name, []).append(round(outage_s, 3))
        if done.failover:
            record.failovers[done.failover].append(outage_s)

    async def _written_since(self, row: Row, done: Done) -> float:
        """Seconds until a push is acknowledged that began after the fault was over."""

        def told() -> Push | None:
            self._journals.read()
            self._cluster.unwell(self._name)  # raises when the job has ended
            return self._journals.first_told(done.since)

        push = await self._cluster.until(told, f"{row.name}: a push after {done.evidence}")
        assert push is not None
        return push.told_at - done.since

    async def _flows(self) -> None:
        """Wait until all is well, and every worker that lives pushes."""

        def well() -> bool:
            return not self._cluster.unwell(self._name)

        try:
            await self._cluster.until(well, "the cluster is whole")
        except ChaosError as error:
            raise ChaosError(f"{error}; {self._cluster.unwell(self._name)}") from error
        since = time.monotonic()

        def flowing() -> bool:
            self._journals.read()
            living = {life.uid for life in self._cluster.job(self._name).running}
            self._cluster.unwell(self._name)
            told = [push for push in self._journals.told if push.tried_at > since]
            uids = {self._journals.lives[push.life].uid for push in told}
            return len(told) >= FLOWING_PUSHES and living <= uids

        await self._cluster.until(flowing, "every worker pushes")

    async def _end(self) -> None:
        """The last write, the last read, and what they show."""
        before = self._journals.acknowledged
        (self._directory / "stop").touch()
        deadline = time.monotonic() + WAIT_S
        while not (status := self._cluster.job(self._name).status) or not status.state.final:
            if time.monotonic() > deadline:
                raise ChaosError(f"{self._name} does not end: {self._cluster.describe()}")
            await asyncio.sleep(LOOK_S)
        self._journals.read()
        if status.state.value != "SUCCEEDED" or not (self._directory / "final.npz").exists():
            raise ChaosError(f"{self._name} ended {status.state.value}: {status.reason}")
        if self._journals.acknowledged <= before:
            raise ChaosError(f"{self._name}: void, no last write")
        verdict = judge(
            self._journals, load_final(self._directory), self._mode.consistency, STALENESS
        )
        self._record.verdict.add(verdict)
        say(
            f"  {self._name}: {verdict.acknowledged} pushes acknowledged,"
            f" {verdict.unknown} unknown, {verdict.violations} violations"
        )
        for word in verdict.words:
            say(f"    {word}")
        if self._saved.exists():
            shutil.rmtree(self._saved)  # the disk is small, and the next job's are to come


def say(text: str) -> None:
    line = f"{time.strftime('%H:%M:%S')} {text}\n"
    sys.stderr.write(line)
    sys.stderr.flush()
