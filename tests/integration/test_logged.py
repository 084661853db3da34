"""What a script logs: reduced over the workers, and kept by the main one alone."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.errors import UsageError
from elasticps.testing.rig import Rig
from elasticps.worker.metrics_file import MetricsFile
from tests.support.scripts import as_worker, as_workers, network


async def test_a_mean_is_weighted_by_samples_and_a_sum_is_of_all() -> None:
    """Three samples in a batch of two workers: two and one, so that a mean of means is wrong."""

    def script(run: elasticps.Run) -> list[Any]:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        found: list[Any] = []
        for batch in run.data(range(9), batch_size=3, shuffle=False, collate=list):
            mean = sum(batch) / len(batch)
            found.append((run.reduce(mean), run.reduce(torch.tensor([len(batch), 1]), "sum")))
            optimizer.step()
        found.append(run.reduce(float(run.rank), "sum"))
        return found

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    means, counts = zip(*one[:-1], strict=True)
    assert means == (1.0, 4.0, 7.0)
    assert [count.tolist() for count in counts] == [[3, 2]] * 3
    assert [mean for mean, _ in other[:-1]] == list(means)
    assert one[-1] == other[-1] == 1.0


async def test_who_has_no_samples_in_a_round_is_not_waited_for() -> None:
    def script(run: elasticps.Run) -> list[float]:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        found = []
        for batch in run.data(range(5), batch_size=1, shuffle=False, collate=list):
            found.append(run.reduce(float(batch[0]), "sum"))
            optimizer.step()
        return found

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    assert sorted(one + other) == [0.0, 1.0, 2.0, 3.0, 4.0]


async def test_nothing_is_reduced_where_workers_do_not_move_in_step() -> None:
    def script(run: elasticps.Run) -> None:
        run.optimizer(network(), "sgd", lr=0.0)
        run.reduce(1.0)

    async with Rig(consistency=Consistency.ASYNC) as rig:
        with pytest.raises(UsageError, match="synchronous"):
            await as_worker(rig, script)


async def test_the_main_worker_alone_keeps_what_is_logged(tmp_path: Path) -> None:
    def script(run: elasticps.Run) -> None:
        optimizer = run.optimizer(network(), "sgd", lr=0.0)
        for batch in run.data(range(6), batch_size=2, shuffle=False, collate=list):
            optimizer.step()
            run.log(first=batch[0], bad=float("nan"))

    def live(environment: dict[str, str]) -> None:
        with elasticps.join({**environment, "ELASTICPS_METRICS_DIR": str(tmp_path)}) as run:
            script(run)

    async with Rig(start_workers=2) as rig:
        lives = [asyncio.to_thread(live, rig.environment(uid)) for uid in ("w0", "w1")]
        await asyncio.gather(*lives)
    kept = (tmp_path / "job" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in kept]
    assert [(line["round"], line["first"], line["bad"]) for line in lines] == [
        (1, 0.0, None),
        (2, 2.0, None),
        (3, 4.0, None),
    ]


async def test_a_folder_that_cannot_be_written_ends_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "job").write_text("a file")
    kept = MetricsFile(tmp_path / "job")
    kept.write(1, {"loss": 1.0})
    kept.write(2, {"loss": 1.0})
    assert len(caplog.records) == 1
    kept.close()


def test_what_is_kept_shows_in_tensorboard(tmp_path: Path) -> None:
    """A process of its own: TensorBoard's packages warn of each other when they are imported."""
    pytest.importorskip("tensorboard", reason="pip install tensorboard")
    program = f"""
from pathlib import Path
from elasticps.worker.metrics_file import MetricsFile
kept = MetricsFile(Path({str(tmp_path)!r}))
for round_ in (1, 2):
    kept.write(round_, {{"loss": 1 / round_, "accuracy": 0.5}})
kept.close()
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
board = EventAccumulator({str(tmp_path)!r})
board.Reload()
print({{tag: [(e.step, e.value) for e in board.Scalars(tag)] for tag in board.Tags()["scalars"]}})
"""
    ran = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, check=True
    )
    assert ran.stdout == "{'loss': [(1, 1.0), (2, 0.5)], 'accuracy': [(1, 0.5), (2, 0.5)]}\n"
