"""Samples that the policy `leased` lends, while a worker is killed in the middle of an epoch."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from tests.integration.cluster.acts import SCRIPTS, WAIT_S, Cluster, kill
from tests.support.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="package")

SAMPLES, BATCH, SLOW = 1800, 40, "n2"


def steps(folder: Path, pattern: str = "*") -> list[tuple[int, list[int]]]:
    """Round and samples of each step that was noted whole."""
    lines = [
        line
        for path in folder.glob(f"{pattern}.steps")
        for line in path.read_text().split("\n")
        if line.endswith("}")
    ]
    rows = [json.loads(line) for line in lines]
    return [(row["round"], row["samples"]) for row in rows]


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_every_sample_counts_once_when_a_slow_worker_is_killed_in_mid_epoch(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    job = await shared_cluster.submit(
        SCRIPTS / "marked.py", tmp_path, SAMPLES, BATCH, SLOW, start_workers=2, max_workers=2
    )
    # By then the slow one is known, and has less than half of a round: what counted twice would
    # show, even where it leaves a round to the other.
    await until(
        lambda: any(len(numbers) < BATCH / 3 for _, numbers in steps(tmp_path, f"{SLOW}-*")),
        timeout_s=WAIT_S,
    )
    (victim,) = await job.worker_pids(SLOW)
    kill(victim)
    assert sum(len(numbers) for _, numbers in steps(tmp_path)) < SAMPLES / 2
    ended = await job.ended()

    assert ended.state == "SUCCEEDED"
    noted = steps(tmp_path)
    of_round: Counter[int] = Counter()
    for round_, numbers in noted:
        of_round[round_] += len(numbers)
    times = Counter(number for _, numbers in noted for number in numbers)
    assert max(times.values()) == 1
    most = {number: 1.4 / of_round[round_] for round_, numbers in noted for number in numbers}
    marks = json.loads(next(tmp_path.glob("*.marks")).read_text())
    assert len(marks) == SAMPLES
    assert [number for number, mark in enumerate(marks) if mark <= 0] == []
    # What the killed one did last it could not note: its round was a whole one.
    twice = [number for number, mark in enumerate(marks) if mark > most.get(number, 1.9 / BATCH)]
    assert twice == []
