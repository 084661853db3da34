"""``plan`` and ``auto`` with real processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import elasticps

ELASTICPS = Path(sys.executable).with_name("elasticps")


def lines(command: list[object], cwd: Path) -> subprocess.CompletedProcess[str]:
    ran = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return ran


SCRIPT = """
import torch
import elasticps

features = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
data = torch.utils.data.TensorDataset(features, features.sum(1, keepdim=True).sin())

with elasticps.join() as run:
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 1)
    optimizer = run.optimizer(model, "adam", lr=3e-3)
    for x, y in run.data(data, batch_size=32, epochs=4):
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    print("weights", float(model.weight.detach().sum()))
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "train.py").write_text(SCRIPT)
    return tmp_path


def weights(ran: subprocess.CompletedProcess[str]) -> list[float]:
    return [float(text) for text in re.findall(r"weights (\S+)", ran.stdout)]


def trained_here() -> float:
    """What SCRIPT prints where one process takes all the steps."""
    features = torch.randn(512, 20, generator=torch.Generator().manual_seed(0))
    targets = features.sum(1, keepdim=True).sin()
    torch.manual_seed(0)
    model = torch.nn.Linear(20, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(4):
        for batch in torch.split(elasticps.sample_order(512, 0, epoch), 32):
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(model(features[batch]), targets[batch]).backward()
            optimizer.step()
    return float(model.weight.detach().sum())


@pytest.mark.long
def test_auto_trains_the_script_by_what_it_chose_to_the_same_result(directory: Path) -> None:
    command = [ELASTICPS, "run", "--nodes", 2, "--json", "--strategy", "auto", "train.py"]
    ran = lines(command, directory)
    job = json.loads(ran.stdout.splitlines()[-1])
    assert (job["state"], job["codec"]) == ("SUCCEEDED", "none")
    assert job["strategy"] in ("data-parallel", "all-reduce")
    assert f"auto: {job['strategy']}: " in ran.stderr
    one, other = weights(ran)
    assert one == pytest.approx(other, abs=1e-6)
    assert one == pytest.approx(trained_here(), abs=1e-4)


@pytest.mark.long
def test_plan_prints_what_it_measured_and_stops_the_script(directory: Path) -> None:
    ran = lines([ELASTICPS, "plan", "--json", "--link", "1Mbit,5ms", "train.py"], directory)
    plan = json.loads(ran.stdout)
    assert (plan["nodes"], plan["workers"], plan["model_bytes"]) == (2, 2, 84)
    assert plan["compute_s"] > 0
    assert not weights(ran)
    assert plan["auto"]["differs"] == ""
    steps = [each["step_s"] for each in plan["choices"]]
    assert steps == sorted(steps)
