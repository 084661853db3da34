"""``elasticps`` that is stopped before it has begun."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

STOPPED_WHILE_LOADING = """
import os, signal, time

os.kill(os.getpid(), signal.SIGINT)
time.sleep(0.1)
raise ImportError("it went on")
"""
"""In place of a module that the command line imports."""


@pytest.fixture
def loading(tmp_path: Path) -> dict[str, str]:
    """The environment of a command that gets a Ctrl-C from the terminal while it loads."""
    (tmp_path / "click.py").write_text(STOPPED_WHILE_LOADING)
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


def run(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "elasticps", "status"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_ctrl_c_while_the_command_loads_ends_it_quietly(loading: dict[str, str]) -> None:
    stopped = run(loading)
    assert (stopped.returncode, stopped.stdout, stopped.stderr) == (130, "", "")


def test_ctrl_c_that_is_ignored_stays_ignored(loading: dict[str, str]) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        went_on = run(loading)
    finally:
        signal.signal(signal.SIGINT, before)
    assert went_on.returncode == 1
    assert "it went on" in went_on.stderr
