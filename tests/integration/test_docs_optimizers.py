"""What docs/optimizers.md tells its reader to paste works when pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from elasticps.api.plugins import OPTIMIZERS, discover
from elasticps.api.refused import REFUSED

PAGE = Path(__file__).resolve().parents[2] / "docs" / "optimizers.md"
ELASTICPS = Path(sys.executable).with_name("elasticps")


def test_the_page_names_every_optimizer_that_there_is_and_that_there_is_not() -> None:
    table, refused = re.split(r"Two are refused", PAGE.read_text())
    named = set(
        re.findall(r"`([a-z-]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)))
    )
    assert {plugin.name for plugin in discover(OPTIMIZERS)} <= named
    for _, name in REFUSED:
        assert f"- `{name}`" in refused


@pytest.mark.long
def test_the_complete_example_trains_on_two_nodes_when_pasted(tmp_path: Path) -> None:
    text = PAGE.read_text()
    (script,) = re.findall(r"```python\n# tuned\.py\n(.*?)```", text, re.DOTALL)
    assert "elasticps run --nodes 2 tuned.py" in text
    (tmp_path / "tuned.py").write_text(script)
    ran = subprocess.run(
        [ELASTICPS, "run", "--nodes", "2", "tuned.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    (loss,) = re.findall(r"\[n\d\] loss (\d\.\d+) after 400 rounds on 2 workers", ran.stdout)
    assert float(loss) < 0.45, "the target's variance is 0.5"
