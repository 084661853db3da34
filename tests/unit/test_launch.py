"""What a worker says of a script that failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from elasticps.worker.launch import killed_loader


def test_a_checkpoint_that_is_refused_is_shown_without_our_own_frames(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "from pathlib import Path\n"
        "from elasticps.checkpoint.snapshot import read\n"
        "def resume():\n"
        f"    read(Path({str(tmp_path)!r}))\n"
        "resume()\n"
    )
    ran = subprocess.run(
        [sys.executable, "-m", "elasticps.worker", script],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 1
    lines = ran.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line for line in lines if "File" in line] == [
        f'  File "{script}", line 5, in <module>',
        f'  File "{script}", line 4, in resume',
    ]
    assert lines[-1].startswith("elasticps.errors.CheckpointError: ")
    assert "direct cause" not in ran.stderr


KILLED = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


def chained(told: str, cause: Exception) -> Exception:
    try:
        raise RuntimeError(told) from cause
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("error", "killed"),
    [
        (KILLED, True),
        (chained("DataLoader worker (pid(s) 7) exited unexpectedly", KILLED), True),
        (chained("the epoch has failed", KILLED), True),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), True),
        (RuntimeError("DataLoader worker (pid 7) exited unexpectedly with exit code 3. "), False),
        (RuntimeError("DataLoader timed out after 5 seconds"), False),
        (ValueError(str(KILLED)), False),
    ],
    ids=["at once", "noticed", "wrapped", "of another thread", "code", "slow", "another"],
)
def test_a_loader_that_was_killed_is_no_failure_of_the_script(
    error: Exception, killed: bool
) -> None:
    assert (killed_loader(error) is not None) == killed
