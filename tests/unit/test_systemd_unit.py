"""The unit file, as systemd itself reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from elasticps.daemon.child import ChildSpec

SYSTEMD = Path(__file__).parents[2] / "systemd"
UNIT = SYSTEMD / "elasticpsd.service"

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT TESTED: systemd-analyze is absent, the unit file was not verified",
)


@pytest.fixture
def settings() -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in UNIT.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


@needs_systemd_analyze
def test_systemd_finds_no_fault_in_the_unit(tmp_path):
    text, count = re.subn(
        r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", UNIT.read_text()
    )
    assert count == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd_analyze
def test_exposure_stays_low():
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=20", UNIT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_daemon_is_started_by_absolute_path(settings):
    assert settings["ExecStart"] == ["/opt/elasticps/bin/elasticps daemon"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("User", "elasticps"),
        ("Restart", "on-failure"),
        ("KillMode", "mixed"),
        ("StateDirectory", "elasticps"),
        ("RuntimeDirectory", "elasticps"),
        ("LogsDirectory", "elasticps"),
        ("After", "network-online.target"),
        ("Wants", "network-online.target"),
        ("OOMPolicy", "continue"),
        ("CapabilityBoundingSet", ""),
    ],
)
def test_unit_says(settings, key, value):
    assert settings[key] == [value]


def test_watchdog_is_on_and_torch_can_run(settings):
    assert int(settings["WatchdogSec"][0]) > 0
    assert "MemoryDenyWriteExecute" not in settings
    assert "PrivateDevices" not in settings


def test_systemd_waits_longer_than_the_children_may_take(settings):
    grace_s = ChildSpec.__dataclass_fields__["stop_grace_s"].default
    assert int(settings["TimeoutStopSec"][0]) > 2 * grace_s
