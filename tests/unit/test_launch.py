"""What a worker says of a script that failed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


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
