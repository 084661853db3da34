"""docs/tutorial.md and docs/integrations.md: every step, and every script, runs as written."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

import elasticps
from elasticps.testing.rig import Rig

DOCS = Path(__file__).resolve().parents[2] / "docs"
TUTORIAL = (DOCS / "tutorial.md").read_text()
INTEGRATIONS = (DOCS / "integrations.md").read_text()


def patched(script: str, diff: str) -> str:
    """``script`` with the lines of ``diff`` changed, which it has once."""
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+")) + "\n"
    after = "\n".join(line[1:] for line in lines if not line.startswith("-")) + "\n"
    assert script.count(before) == 1, diff
    return script.replace(before, after)


async def as_job(script: Path, monkeypatch: pytest.MonkeyPatch, workers: int = 1) -> None:
    join = elasticps.join
    async with Rig(start_workers=workers) as rig:
        uids = iter(f"w{number}" for number in range(workers))
        monkeypatch.setattr(elasticps, "join", lambda: join(rig.environment(next(uids))))
        runs = (asyncio.to_thread(runpy.run_path, str(script)) for _ in range(workers))
        await asyncio.gather(*runs)
        monkeypatch.setattr(elasticps, "join", join)


async def test_every_step_of_the_tutorial_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *steps = re.split(r"^## \d\. ", TUTORIAL, flags=re.MULTILINE)
    (text,) = re.findall(r"```python\n(# train\.py\n.*?)```", first, re.DOTALL)
    path = tmp_path / "train.py"
    path.write_text(text)
    runpy.run_path(str(path))
    told = [capsys.readouterr().out]
    for step in steps:
        for diff in re.findall(r"```diff\n(.*?)```", step, re.DOTALL):
            text = patched(text, diff)
        path.write_text(text)
        await as_job(path, monkeypatch)
        told.append(capsys.readouterr().out)
    assert told[0] == told[1], "with one worker the numbers are those of before"
    assert all(float(loss) < 0.5 for line in told for loss in re.findall(r"loss (\S+)", line))
    assert told[-1].endswith("after 64 rounds\n")
    assert "elasticps" not in first.split("```python")[1].split("```")[0]


@pytest.mark.filterwarnings("ignore")  # a framework's own are not ours
async def test_the_trainer_of_the_page_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    accelerate: Any = pytest.importorskip(
        "accelerate", reason="pip install 'elasticps[integrations]'"
    )
    (text,) = re.findall(r"```python\n(# trained\.py\n.*?)```", INTEGRATIONS, re.DOTALL)
    path = tmp_path / "trained.py"
    path.write_text(text)
    await as_job(path, monkeypatch)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
    assert "trained for 8 rounds" in capsys.readouterr().out


async def test_the_table_of_the_page_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets", reason="pip install 'elasticps[integrations]'")
    (text,) = re.findall(r"```python\n(# tabled\.py\n.*?)```", INTEGRATIONS, re.DOTALL)
    path = tmp_path / "tabled.py"
    path.write_text(text)
    await as_job(path, monkeypatch)
    assert "read 64 rows twice in 8 rounds" in capsys.readouterr().out


@pytest.mark.parametrize("page", [TUTORIAL, INTEGRATIONS], ids=["tutorial", "integrations"])
def test_what_a_page_points_to_is_there(page: str) -> None:
    for name in re.findall(r"\]\((\S+?\.md)\)", page):
        assert (DOCS / name).is_file(), name
    for name in re.findall(r"examples/\w+\.py", page):
        assert (DOCS.parent / name).is_file(), name
