"""Strategies in real processes: workers that die and join within a period."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.cluster.acts import SCRIPTS, WAIT_S, Cluster, kill
from tests.support.processes import until

pytestmark = pytest.mark.asyncio(loop_scope="package")

ELASTICPS = Path(sys.executable).with_name("elasticps")
DIGITS = Path(__file__).resolve().parents[3] / "examples" / "digits.py"
H = 5


def notes(directory: Path) -> dict[int, list[dict[str, Any]]]:
    """By process, what a worker noted of each step; its last line may be under way."""
    return {
        int(path.stem): [json.loads(line) for line in path.read_text().split("\n")[:-1]]
        for path in directory.glob("*.jsonl")
    }


@pytest.mark.timeout(300)
async def test_a_worker_that_dies_or_joins_within_a_period_costs_the_other_no_step(
    shared_cluster: Cluster, tmp_path: Path
) -> None:
    goal = tmp_path / "goal"
    job = await shared_cluster.submit(
        SCRIPTS / "noted.py", goal, tmp_path, start_workers=2, strategy=f"local-sgd:h={H}"
    )

    def in_a_period(pid: int) -> bool:
        rows = notes(tmp_path).get(pid, [])
        return len(rows) > 2 and rows[-1]["round"] > 0 and rows[-1]["round"] == rows[-2]["round"]

    await until(lambda: len(notes(tmp_path)) == 2, timeout_s=WAIT_S)
    (dying,) = await job.worker_pids("n2")
    (survivor,) = await job.worker_pids("n1")
    await until(lambda: in_a_period(dying), timeout_s=WAIT_S)
    kill(dying)
    await until(lambda: len(notes(tmp_path)) == 3, timeout_s=WAIT_S)
    (joiner,) = notes(tmp_path).keys() - {dying, survivor}
    await until(lambda: len(notes(tmp_path).get(joiner, [])) > 3 * H, timeout_s=WAIT_S)
    goal.touch()
    ended = await job.ended()

    assert ended.state == "SUCCEEDED"
    rows = notes(tmp_path)
    assert [row["step"] for row in rows[survivor]] == list(range(len(rows[survivor])))
    assert max(Counter(row["round"] for row in rows[survivor]).values()) <= H + 1
    at = rows[joiner][0]
    (then,) = [row for row in rows[survivor] if row["round"] == at["round"]][:1]
    assert at["digest"] == then["digest"]
    assert {row["world"] for row in rows[survivor]} == {1, 2}


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_digits_are_learned_by_local_sgd_as_a_user_runs_it() -> None:
    ran = await asyncio.to_thread(
        subprocess.run,
        [ELASTICPS, "run", "--nodes", "2", "--audit", "--strategy", "local-sgd:h=8", DIGITS],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"held-out accuracy ([\d.]+) after (\d+) rounds", ran.stdout)
    assert found is not None, ran.stdout
    assert float(found[1]) > 0.9
    assert int(found[2]) == 20  # 15 batches an epoch: 8 and 7, ten times
    assert "0 lost, 0 duplicated" in ran.stdout + ran.stderr


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_the_two_parts_that_the_docs_show_train_when_pasted(tmp_path: Path) -> None:
    text = (Path(__file__).resolve().parents[3] / "docs" / "strategies.md").read_text()
    (source,) = re.findall(r"```python\n# two_parts\.py\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"elasticps (run .*--strategy '.* two_parts\.py)\n", text)
    (tmp_path / "two_parts.py").write_text(source)
    ran = await asyncio.to_thread(
        subprocess.run,
        [ELASTICPS, *shlex.split(command.replace("run", "run --audit", 1))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    found = re.search(r"loss (\d\.\d+) after 200 rounds on 2 workers", ran.stdout)
    assert found is not None, ran.stdout
    assert float(found[1]) < 0.01
    assert "0 lost, 0 duplicated" in ran.stdout + ran.stderr
