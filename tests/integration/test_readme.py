"""What the README tells a newcomer to paste works when pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"
ELASTICPS = Path(sys.executable).with_name("elasticps")


def test_the_quick_start_trains_on_two_nodes_when_pasted(tmp_path: Path) -> None:
    text = README.read_text()
    (script,) = re.findall(r"```python\n# train\.py\n(.*?)```", text, re.DOTALL)
    assert "elasticps run --nodes 2 train.py" in text
    (tmp_path / "train.py").write_text(script)
    ran = subprocess.run(
        [ELASTICPS, "run", "--nodes", "2", "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\[n\d\] loss \d\.\d+ after 400 rounds on 2 workers", ran.stdout), ran.stdout


def test_the_character_model_learns(tmp_path: Path) -> None:
    script = README.parent / "examples" / "charlm.py"
    ran = subprocess.run(
        [ELASTICPS, "run", "--audit", script, "--rounds", "30", "--layers", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    bits = [float(found) for found in re.findall(r"([\d.]+) bits a character", ran.stdout)]
    assert bits[-1] < bits[0] < 7.0, ran.stdout
    assert "0 lost, 0 duplicated" in ran.stdout + ran.stderr
