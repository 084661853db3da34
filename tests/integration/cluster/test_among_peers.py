"""Strategies among peers, with real processes: a worker is killed, another joins, a node leaves."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.acts import SCRIPTS, Cluster, Job, kill, notes

pytestmark = pytest.mark.asyncio(loop_scope="module")

SAMPLES = 60
EPOCHS = 100


async def counted(cluster: Cluster, directory: Path, strategy: str, **wishes: Any) -> Job:
    directory.mkdir(exist_ok=True)
    script = SCRIPTS / "counted.py"
    root = str(Path(__file__).parents[3])
    return await cluster.submit(
        script,
        directory,
        EPOCHS,
        strategy=strategy,
        block_bytes=4096,
        env={"PYTHONPATH": root},
        **wishes,
    )


def check(directory: Path, gone: str) -> None:
    """No sample has counted twice; none is missing but the last ones of who is gone.

    Who was killed, or left with its last step, has not noted that.
    """
    noted = notes(directory)
    counts = Counter(sample for rows in noted.values() for row in rows for sample in row["samples"])
    assert set(counts) == set(range(SAMPLES))
    assert max(counts.values()) == EPOCHS
    missing = sum(EPOCHS - count for count in counts.values())
    assert missing <= max(len(row["samples"]) for row in noted[gone])
    by_round: dict[int, set[int]] = {}
    for rows in noted.values():
        for row in rows:
            by_round.setdefault(row["round"], set()).add(row["world"])
    assert all(len(worlds) == 1 for worlds in by_round.values())
    results = [json.loads(path.read_text()) for path in directory.glob("*.json")]
    assert len(results) >= 2
    assert all(result == results[0] for result in results)


BY_NAME = "0.*=all-reduce:publish_every=25; *=data-parallel"


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("all-reduce:publish_every=25", marks=pytest.mark.long),
        pytest.param("gossip:topology=ring", marks=pytest.mark.long),
        pytest.param(BY_NAME, marks=pytest.mark.long),
    ],
)
async def test_a_killed_worker_costs_the_others_no_step_and_its_successor_takes_its_place(
    three_nodes: Cluster,
    tmp_path: Path,
    strategy: str,
    record_property: Callable[[str, object], None],
) -> None:
    job = await counted(three_nodes, tmp_path, strategy, start_workers=3, max_workers=3)
    await job.is_trained_by("n1", "n2", "n3")
    (pid,) = await job.worker_pids("n2")
    await job.goes_on(5)
    at = time.monotonic()
    kill(pid)

    ended = await job.ended()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None)
    check(tmp_path, f"n2-{pid}")
    others = [rows for name, rows in notes(tmp_path).items() if not name.startswith("n2")]
    without = [
        [row["at"] for row in rows if row["at"] > at and row["world"] == 2] for rows in others
    ]
    pauses = [min(times) - at for times in without if times]
    record_property("next_step_after_kill_s", max(pauses))
    worlds = [row["world"] for row in others[0]]
    assert [world for world, _ in itertools.groupby(worlds)] == [3, 2, 3]


@pytest.mark.parametrize(
    "strategy",
    [
        pytest.param("all-reduce", marks=pytest.mark.long),
        pytest.param("gossip:topology=exponential", marks=pytest.mark.long),
        pytest.param(BY_NAME, marks=pytest.mark.long),
    ],
)
async def test_a_node_that_drains_and_one_that_joins_change_no_others_step(
    three_nodes: Cluster, tmp_path: Path, strategy: str
) -> None:
    job = await counted(three_nodes, tmp_path, strategy, start_workers=3, max_workers=3)
    await job.is_trained_by("n1", "n2", "n3")
    (pid,) = await job.worker_pids("n3")
    await three_nodes.drain("n3", stay=True)
    await job.is_trained_by("n1", "n2")
    await three_nodes.undrain("n3")

    ended = await job.ended()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None)
    check(tmp_path, f"n3-{pid}")
