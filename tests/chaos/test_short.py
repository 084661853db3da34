"""The short form of the chaos, as a program: every checker on, and nothing left behind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from tests.chaos.catalogue import found_here, left_out
from tests.chaos.clock import find_library
from tests.chaos.network import can_be_made
from tests.support.processes import runs

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 480


@pytest.mark.timeout(LIMIT_S + 30)
def test_nothing_acknowledged_is_lost_while_servers_nodes_etcd_and_links_fail(
    tmp_path: Path,
) -> None:
    mark = f"chaos-{uuid.uuid4()}"
    environment = {**os.environ, "TMPDIR": str(tmp_path), "MARK_OF_THIS_TEST": mark}
    try:
        with (tmp_path / "progress").open("wb") as progress:
            ended = subprocess.run(
                [sys.executable, "-m", "tests.chaos", "--short"],
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=progress,
                timeout=LIMIT_S,
                check=False,
            )
    finally:  # whether it ended or hangs
        told = (tmp_path / "progress").read_text()
        sys.stderr.write(told)

    assert ended.returncode == 0, told + ended.stdout.decode()
    report = json.loads(ended.stdout.splitlines()[-1])
    assert report["acknowledged"] > 0
    assert report["failures"] == []
    for violation in ("lost", "duplicated", "torn_rounds", "bank", "version"):
        name = violation if violation in report else f"{violation}_violations"
        assert report[name] == 0
    assert {"process", "network", "etcd"} <= report["faults"].keys()
    assert report["kills"] >= 3
    assert left_running(mark) == []
    assert list(tmp_path.glob("chaos-*")) == []


def test_every_fault_of_the_catalogue_can_be_caused_here() -> None:
    """Where one can't, this skips, which fails CI."""
    lacking = left_out(found_here(find_library(), namespaces=not can_be_made()))
    if lacking:
        pytest.skip(f"NOT TESTED: {'; '.join(lacking)}")


def left_running(mark: str) -> list[int]:
    """Processes of the campaign that live, whoever their parent is by now."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and runs(int(entry.name)):
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:  # it has just ended
                continue
            if mark.encode() in environment:
                found.append(int(entry.name))
    return found
