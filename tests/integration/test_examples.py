"""The examples run as their first lines say, on small settings."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.processes import wait_until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ELASTICPS = Path(sys.executable).with_name("elasticps")


def run(folder: Path, *arguments: str | Path) -> str:
    """What ``elasticps run`` prints of the script; it has succeeded."""
    ran = subprocess.run(
        [ELASTICPS, "run", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short_and_says_how_it_is_run(path: Path) -> None:
    text = path.read_text()
    assert f"examples/{path.name}" in text.split('"""')[1]
    assert len(text.splitlines()) < 80


def ddp_loss(told: str) -> str:
    (loss,) = re.findall(r"loss (\d\.\d+) as rank 0 \(local rank 0\) of 2", told)
    return str(loss)


def test_a_script_for_torchrun_runs_unchanged(tmp_path: Path) -> None:
    script = EXAMPLES / "ddp.py"
    assert "elasticps" not in script.read_text().split('"""', 2)[2]
    told = run(tmp_path, "--nodes", "2", "--strategy", "all-reduce:torchrun=true", script)
    assert float(ddp_loss(told)) < 1.0


@pytest.mark.long
def test_a_script_for_torchrun_comes_to_what_it_does_under_torchrun(tmp_path: Path) -> None:
    script = EXAMPLES / "ddp.py"
    told = run(tmp_path, "--nodes", "2", "--strategy", "all-reduce:torchrun=true", script)
    torchrun = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", script],
        capture_output=True,
        text=True,
        timeout=110,
        check=True,
    )
    assert ddp_loss(torchrun.stdout) == ddp_loss(told)


@pytest.mark.long
def test_the_trainer_trains_on_two_nodes(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="pip install 'elasticps[integrations]'")
    script = EXAMPLES / "hugging_face.py"
    told = run(tmp_path, "--nodes", "2", script, "--epochs", "1", "--sentences", "64")
    (rounds,) = set(re.findall(r"loss \d\.\d+ after (\d+) rounds", told))
    assert rounds == "4"


@pytest.mark.long
def test_a_lightning_module_trains_on_two_nodes(tmp_path: Path) -> None:
    pytest.importorskip("lightning", reason="pip install 'elasticps[integrations]'")
    told = run(tmp_path, "--nodes", "2", EXAMPLES / "lightning_digits.py", "--epochs", "2")
    (accuracy,) = set(re.findall(r"held-out accuracy (\d\.\d+)", told))
    assert float(accuracy) > 0.7


@pytest.mark.long
def test_who_resumes_after_a_total_power_loss_comes_to_what_nothing_had_stopped(
    tmp_path: Path,
) -> None:
    script = EXAMPLES / "power_loss.py"
    saved = tmp_path / "saved"
    options = ("--nodes", "2", "--checkpoint-dir", saved, "--checkpoint-every", "5")
    with subprocess.Popen(
        [ELASTICPS, "run", *options, script], cwd=tmp_path, start_new_session=True
    ) as running:
        wait_until(lambda: len(list(saved.glob("round-*/manifest.json"))) >= 2, 100)
        running.kill()  # its daemons, and their children, die with it
    resumed = run(tmp_path, "--nodes", "2", "--resume", saved, script)
    whole = run(tmp_path, "--nodes", "2", script)
    assert "going on after round" in resumed
    assert weights(resumed) == weights(whole)


def weights(told: str) -> str:
    (found,) = set(re.findall(r"weights ([0-9a-f]{16})", told))
    return str(found)
