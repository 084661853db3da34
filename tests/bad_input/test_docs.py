"""What docs/bad-input.md shows is what the commands say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "bad-input.md"


def test_every_command_of_the_page_is_answered_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (session,) = re.findall(r"```\n(\$ .*?)```", PAGE.read_text(), re.DOTALL)
    monkeypatch.setenv("ELASTICPS_CONFIG", "/dev/null")
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:/usr/bin:/bin")
    steps = re.findall(r"\$ (.+)\n((?:(?!\$ ).+\n)*)", session)
    assert len(steps) == 7
    for command, shown in steps:
        ran = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ran.stdout, ran.stderr) == ("", shown), command
        assert ran.returncode == (2 if shown else 0)
