"""The page on checkpoints does what it says, pasted in its order."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "checkpoints.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.long
def test_the_commands_on_checkpoints_work_when_pasted_in_their_order(tmp_path: Path) -> None:
    script, loading, *_ = blocks("python")
    (tmp_path / "train.py").write_text(script)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    (commands,) = blocks("sh")
    said = []
    for command in commands.splitlines():
        ended = subprocess.run(
            command.split(),
            cwd=tmp_path,
            env={**os.environ, "PATH": path},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, (command, ended.stderr)
        said.append(ended.stdout)
    first, listed, _, imported, begun, resumed = said
    assert "ended at round 32" in first
    assert listed.count("complete") == 2
    assert "round 0" in imported
    assert "ended at round 32" in begun
    assert "ended at round 32" in resumed
    subprocess.run([sys.executable, "-c", loading], cwd=tmp_path, check=True, timeout=60)


@pytest.mark.long
def test_what_a_script_saves_by_itself_loads_without_elasticps(tmp_path: Path) -> None:
    *_, saving, loading = blocks("python")
    (tmp_path / "train.py").write_text(saving)
    command = [sys.executable, "-m", "elasticps", "run", "--nodes", "1", "train.py"]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=120)
    subprocess.run([sys.executable, "-c", loading], cwd=tmp_path, check=True, timeout=60)
