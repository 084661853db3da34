"""Data policies where one of three workers is slowed four times, and where a node is killed.

``make bench-data``. Real processes on this machine. A worker's work is a sleep for each sample, so
that what the ideal is, all speeds together, does not depend on what else the machine does. The
throughput leaves out the first rounds, in which speeds are measured. In the last part the slowed
worker stays, a node is killed in the middle of a round and one joins; a sample's mark in the model
says whether it counted, and how often. The last line is one JSON object.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
from data_train import SLOWED

from elasticps.testing import LocalCluster

HERE = Path(__file__).parent
NODES, SLOW, VICTIM = 3, "n1", "n3"
BATCH = 90
EACH_S = 0.008
IDEAL = (NODES - 1 + 1 / SLOWED) / EACH_S
MEASURING, MEASURED = 15, 25
COUNTED = 120
"""Rounds: in which speeds settle, over which throughput is taken, of the part with the kill."""
LIMIT_S = 120
POLL_S = 0.05

Steps = list[dict[str, Any]]


class Bench:
    """Jobs on one cluster."""

    def __init__(self, cluster: LocalCluster, session: aiohttp.ClientSession, folder: Path) -> None:
        self._cluster = cluster
        self._session = session
        self._folder = folder
        self._name = ""

    async def throughput(self, policy: str) -> float:
        """Samples a second of all workers, once speeds are known."""
        folder = await self._submit(policy, (MEASURING + MEASURED) * BATCH, loaders=0)
        await self._ended(folder)
        steps = [row for row in steps_of(folder) if row["round"] >= MEASURING]
        began = max(row["at"] for row in steps if row["round"] == MEASURING)
        read = sum(len(row["samples"]) for row in steps if row["round"] > MEASURING)
        return read / (max(row["at"] for row in steps) - began)

    async def samples(self, policy: str) -> tuple[int, int, int]:
        """Samples that were lost, and repeated, with a node killed and one joined; of how many."""
        size = COUNTED * BATCH // 4
        folder = await self._submit(policy, size, loaders=1)
        await self._until(folder, size // 4)
        self._cluster.kill(VICTIM)
        await self._cluster.wait(VICTIM)
        del self._cluster.nodes[VICTIM]
        await self._cluster.add_node()
        await self._ended(folder)
        return (*audit(folder, size), size)

    async def _submit(self, policy: str, size: int, *, loaders: int) -> Path:
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        script = str(HERE / "data_train.py")
        arguments = [folder, policy, size, BATCH, EACH_S, SLOW, loaders]
        body = {
            "argv": [script, *map(str, arguments)],
            "cwd": str(HERE),
            "start_workers": NODES,
        }
        async with self._session.post(f"{self._cluster.api}/api/v1/jobs", json=body) as answer:
            told = await answer.json()
            if answer.status != 201:
                raise SystemExit(f"the job was refused: {told}")
        self._name = str(told["job"])
        return folder

    async def _until(self, folder: Path, count: int) -> None:
        while True:
            if sum(len(row["samples"]) for row in steps_of(folder)) >= count:
                return
            await asyncio.sleep(POLL_S)

    async def _ended(self, folder: Path) -> None:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            url = f"{self._cluster.api}/api/v1/jobs/{self._name}"
            try:
                async with self._session.get(url) as answer:
                    job = await answer.json()
            except aiohttp.ClientError:
                job = {}
            if job.get("state") == "SUCCEEDED":
                return
            if job.get("state") in ("FAILED", "CANCELLED"):
                raise SystemExit(f"the job has failed: {job.get('reason')}")
            await asyncio.sleep(POLL_S)
        raise SystemExit(f"the job has not ended in {LIMIT_S} s")


def steps_of(folder: Path) -> Steps:
    """What all workers noted after their steps; a killed one's last line may be cut."""
    lines = [line for path in folder.glob("*.steps") for line in path.read_text().split("\n")]
    return [json.loads(line) for line in lines if line.endswith("}")]


def audit(folder: Path, size: int) -> tuple[int, int]:
    """How many samples never counted, and how many counted more than once.

    A sample's mark is the sum of 1 / samples over the rounds that it counted in. What a killed
    worker could not note has a mark all the same.
    """
    steps = steps_of(folder)
    rounds: Counter[int] = Counter()
    for row in steps:
        rounds[row["round"]] += len(row["samples"])
    noted = [(sample, rounds[row["round"]]) for row in steps for sample in row["samples"]]
    once = {sample: 1 / of for sample, of in noted}
    twice = {sample for sample, times in Counter(s for s, _ in noted).items() if times > 1}
    marks = json.loads(next(folder.glob("*.marks")).read_text())
    lost = sum(mark == 0 for mark in marks)
    more = {s for s, mark in enumerate(marks) if mark > 1.6 * once.get(s, 1.2 / BATCH)}
    return lost, len(twice | more)


async def measure() -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-data") as folder:
        async with aiohttp.ClientSession() as session, LocalCluster(nodes=NODES) as cluster:
            bench = Bench(cluster, session, Path(folder))
            for policy in ("leased", "static"):
                rate = await bench.throughput(policy)
                print(f"{policy}: {rate:.0f} samples/s of {IDEAL:.0f}", file=sys.stderr)
                found[f"{policy}_vs_ideal"] = round(rate / IDEAL, 3)
            lost, repeated, size = await bench.samples("leased")
    return {**found, "samples_lost": lost, "samples_repeated": repeated, "samples": size}


def main() -> None:
    print(json.dumps(asyncio.run(measure())))


if __name__ == "__main__":
    main()
