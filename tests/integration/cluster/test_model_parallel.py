"""Pipelines of real processes: stages are killed, join, and have less memory than the model."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import optim

import elasticps
from elasticps.api.pipeline import Pipeline
from tests.integration.cluster.acts import SCRIPTS, Cluster, Job, kill, notes
from tests.integration.cluster.scripts import large, staged
from tests.integration.cluster.scripts.train import numbers
from tests.support.pipelines import alone, layers, numbered

pytestmark = pytest.mark.asyncio(loop_scope="module")

ROOT = str(Path(__file__).parents[3])
EPOCHS = 30
ROOM_MIB = 236
"""For half of the model's parameters, 64 MiB, and their gradients; not for those of all of it."""


async def begun(cluster: Cluster, directory: Path, strategy: str, **wishes: Any) -> Job:
    return await cluster.submit(
        SCRIPTS / "staged.py",
        directory,
        EPOCHS,
        strategy=strategy,
        block_bytes=4096,
        env={"PYTHONPATH": ROOT},
        **wishes,
    )


def rounds_of(noted: dict[str, list[dict[str, Any]]], gone: str) -> dict[int, list[int]]:
    """The samples of each round. Who is ``gone`` may not have noted that its last step counted."""
    of: dict[int, list[int]] = {}
    last: list[int] = []
    for name, rows in noted.items():
        for intent, counted in itertools.pairwise(rows):
            if "samples" in intent and "round" in counted:
                of.setdefault(counted["round"], []).extend(intent["samples"])
        if name == gone and "samples" in rows[-1]:
            last = rows[-1]["samples"]
    counts = Counter(sample for samples in of.values() for sample in samples)
    missing = Counter(dict.fromkeys(range(staged.SIZE), EPOCHS)) - counts
    if missing:
        assert missing == Counter(last)
        before = max(row["round"] for row in noted[gone] if "round" in row)
        of.setdefault(before + 1, []).extend(last)
    assert sum(map(len, of.values())) == staged.SIZE * EPOCHS
    return of


def check(directory: Path, gone: str) -> None:
    """Every sample has counted once an epoch, and the model is that of one process."""
    of = rounds_of(notes(directory), gone)
    data, local = numbered(staged.SIZE), layers()
    optimizer = optim.SGD(local.parameters(), **staged.OPTIONS)
    alone(local, optimizer, [data[of[at]][1:] for at in sorted(of)])
    results = [json.loads(path.read_text()) for path in directory.glob("*.json")]
    assert len(results) >= 2
    expected = torch.tensor(numbers(local))
    for result in results:
        got = torch.tensor(result["numbers"])
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


@pytest.mark.long
@pytest.mark.parametrize(
    "strategy", ["model-parallel", "model-parallel:stages=2,schedule=gpipe,microbatches=3"]
)
async def test_a_killed_stage_is_cut_anew_over_the_others_and_its_successor_gets_one(
    three_nodes: Cluster,
    tmp_path: Path,
    strategy: str,
    record_property: Callable[[str, object], None],
) -> None:
    job = await begun(three_nodes, tmp_path, strategy, start_workers=3, max_workers=3)
    await job.is_trained_by("n1", "n2", "n3")
    (pid,) = await job.worker_pids("n2")
    await job.goes_on(5)
    at = time.monotonic()
    kill(pid)

    ended = await job.ended()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None), getattr(
        ended.failure, "traceback", ""
    )
    check(tmp_path, f"n2-{pid}")
    others = [rows for name, rows in notes(tmp_path).items() if not name.startswith("n2")]
    counted = [[row for row in rows if "round" in row] for rows in others]
    after = [
        next(row["at"] for row in rows if row["at"] > at and row["world"] == 2) for rows in counted
    ]
    record_property("next_step_after_kill_s", max(after) - at)
    worlds = [row["world"] for row in counted[0]]
    assert [world for world, _ in itertools.groupby(worlds)] == [3, 2, 3]


@pytest.mark.long
async def test_a_node_that_drains_and_one_that_joins_cost_no_sample(
    three_nodes: Cluster, tmp_path: Path
) -> None:
    job = await begun(three_nodes, tmp_path, "model-parallel", start_workers=3, max_workers=3)
    await job.is_trained_by("n1", "n2", "n3")
    (pid,) = await job.worker_pids("n3")
    await three_nodes.drain("n3", stay=True)
    await job.is_trained_by("n1", "n2")
    await three_nodes.undrain("n3")

    ended = await job.ended()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None), getattr(
        ended.failure, "traceback", ""
    )
    check(tmp_path, f"n3-{pid}")


# -- memory -------------------------------------------------------------------------------------


async def large_job(cluster: Cluster, directory: Path, strategy: str, **wishes: Any) -> Job:
    return await cluster.submit(
        SCRIPTS / "large.py",
        directory,
        ROOM_MIB,
        strategy=strategy,
        env={
            "PYTHONPATH": ROOT,
            # A heap for each thread takes address space that nobody uses, and the C library keeps
            # what was freed unless it is told from which size on not to.
            "MALLOC_ARENA_MAX": "1",
            "MALLOC_MMAP_THRESHOLD_": "131072",
        },
        **wishes,
    )


@pytest.mark.long
async def test_a_model_too_large_for_one_worker_is_trained_by_two(
    three_nodes: Cluster, tmp_path: Path
) -> None:
    """Under RLIMIT_AS. The losses are those of one process without such a limit."""
    job = await large_job(three_nodes, tmp_path, "model-parallel", start_workers=2, max_workers=2)

    ended = await job.ended()

    assert (ended.state, ended.failure) == ("SUCCEEDED", None), getattr(
        ended.failure, "traceback", ""
    )
    results = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    model = large.layers("meta")
    pipeline = Pipeline(model, large.loss_of)
    for layer in range(large.LAYERS):
        pipeline.draw(layer)
    whole = sum(pipeline.nbytes(layer) for layer in range(large.LAYERS))
    assert sum(result["held"] for result in results) == whole
    assert 2 * whole > ROOM_MIB * large.MIB
    data = large.dataset()
    expected = []
    optimizer = optim.SGD(model.parameters(), lr=1.0)
    for epoch in range(large.EPOCHS):
        for part in elasticps.sample_order(large.SIZE, 0, epoch).split(large.BATCH):
            inputs, targets = data[part]
            optimizer.zero_grad()
            loss = large.loss_of(model(inputs), targets)
            loss.backward()
            optimizer.step()
            expected.append(float(loss.detach()))
    for result in results:
        torch.testing.assert_close(result["losses"], expected, rtol=0, atol=1e-5)


@pytest.mark.long
async def test_the_same_model_is_too_large_for_each_worker_alone(
    three_nodes: Cluster, tmp_path: Path
) -> None:
    job = await large_job(three_nodes, tmp_path, "data-parallel")
    ended = await job.ended()
    assert ended.state == "FAILED"
    assert ended.failure is not None
    assert "memory" in ended.failure.reason

    job = await large_job(three_nodes, tmp_path, "model-parallel")
    ended = await job.ended()
    assert ended.state == "FAILED"
    assert ended.failure is not None
    assert "no cut of 38" in ended.failure.reason  # MiB: three times its 128, and a little
