"""A machine in a test's folder, and what the doctor finds there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elasticps.daemon.sources import load
from elasticps.doctor.finding import Finding, Level
from elasticps.doctor.setup import Setup


def setup_of(directory: Path, **flags: str) -> Setup:
    """``flags`` are keys of settings, with __ for a dot."""
    given: dict[str, Any] = {
        "node": "a",
        "data": "127.0.0.1:0",
        "http": "127.0.0.1:0",
        **{key: str(directory / key) for key in ("state_dir", "log_dir", "runtime_dir")},
        **{key.replace("__", "."): value for key, value in flags.items()},
    }
    return Setup(settings=load(given, {}, Path("/dev/null")))


def secured(directory: Path, files: Any, **flags: str) -> Setup:
    given = {"tls__ca": str(files.ca), "tls__cert": str(files.cert), "tls__key": str(files.key)}
    return setup_of(directory, **given, **flags)


def the(level: Level, findings: list[Finding]) -> Finding:
    """The one finding of this level."""
    (found,) = [each for each in findings if each.level is level]
    return found


def well(findings: list[Finding]) -> bool:
    return {each.level for each in findings} == {Level.OK}


def doctor_rows(
    directory: Path, prefix: tuple[str, ...], *options: str, **how: Any
) -> list[Mapping[str, str]]:
    """What the command says of the machine, in a process of its own."""
    folders_ = [f"--{key}-dir={directory / key}" for key in ("state", "log", "runtime")]
    done = subprocess.run(
        [
            *(*prefix, sys.executable, "-m", "elasticps", "doctor", "--only=machine", "--json"),
            *("--config=/dev/null", "--http=127.0.0.1:0", *folders_, *options),
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
        **how,
    )
    assert done.stdout, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert done.returncode == int(any(row["level"] == "fault" for row in rows))
    return list(rows)
