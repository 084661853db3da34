"""The unit files, as systemd itself reads them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from elasticps.daemon.child import ChildSpec
from elasticps.daemon.config import DaemonConfig
from elasticps.daemon.service import FILES, SAMPLE_PYTHON, text_of

SYSTEMD = Path(__file__).parents[2] / "systemd"
DAEMON = SYSTEMD / "elasticpsd.service"
WORKER = SYSTEMD / "elasticps-worker@.service"

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None,
    reason="NOT TESTED: systemd-analyze is absent, the unit files were not verified",
)


def settings_of(unit: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for line in unit.read_text().splitlines():
        if line and line[0] not in "#[":
            key, _, value = line.partition("=")
            found[key].append(value)
    return found


def analyze(*args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@needs_systemd_analyze
def test_systemd_finds_no_fault_in_the_units(tmp_path):
    runnable = shutil.which("true")
    for file in FILES:
        if file.place.startswith("etc/systemd/system/"):
            (tmp_path / file.name).write_text(text_of(file, runnable, cores=4))
    units = sorted(tmp_path.iterdir())
    assert len(units) == 3
    done = analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_systemd_analyze
@pytest.mark.parametrize("unit", [DAEMON, WORKER], ids=lambda unit: unit.name)
def test_exposure_stays_low(unit):
    done = analyze("security", "--offline=true", "--no-pager", "--threshold=15", unit)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("unit", [DAEMON, WORKER], ids=lambda unit: unit.name)
def test_units_start_the_python_that_an_installation_puts_in(unit):
    (command,) = settings_of(unit)["ExecStart"]
    assert command.startswith(f"{SAMPLE_PYTHON} -P -m elasticps")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),
        ("User", "elasticps"),
        ("Restart", "on-failure"),
        ("KillMode", "mixed"),
        ("StateDirectory", "elasticps"),
        ("LogsDirectory", "elasticps"),
        ("After", "network-online.target"),
        ("Wants", "network-online.target"),
        ("OOMPolicy", "continue"),
        ("CapabilityBoundingSet", ""),
        ("RestartPreventExitStatus", "2 3"),
        ("PartOf", "elasticps.target"),
    ],
)
def test_the_daemons_unit_says(key, value):
    assert settings_of(DAEMON)[key] == [value]


@pytest.mark.parametrize("key", ["MemoryMax", "TasksMax", "CPUQuota"])
def test_the_workers_unit_limits(key):
    assert settings_of(WORKER)[key]


def test_user_code_has_a_user_of_its_own_and_no_capability():
    unit = settings_of(WORKER)
    assert unit["DynamicUser"] == ["yes"]
    assert "%i" in unit["User"][0], "or all workers would be one user"
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["NoNewPrivileges"] == ["yes"]


def test_watchdog_is_on_and_torch_can_run():
    assert int(settings_of(DAEMON)["WatchdogSec"][0]) > 0
    for unit in (DAEMON, WORKER):
        assert "MemoryDenyWriteExecute" not in settings_of(unit)
    assert "PrivateDevices" not in settings_of(WORKER)


def test_systemd_waits_longer_than_the_daemon_may_take_to_drain_and_to_stop_its_children():
    grace_s = ChildSpec.__dataclass_fields__["stop_grace_s"].default
    drain_s = DaemonConfig.__dataclass_fields__["drain_timeout_s"].default
    assert int(settings_of(DAEMON)["TimeoutStopSec"][0]) > drain_s + 2 * grace_s


def test_polkit_lets_the_daemon_at_workers_units_alone():
    rule = (SYSTEMD / "polkit.rules").read_text()
    (pattern,) = re.findall(r"/(\^.*\$)/\.test", rule)
    assert re.match(pattern, "elasticps-worker@1072.service")
    for other in ("sshd.service", "elasticps-worker@1.service/../b.service", "elasticpsd.service"):
        assert not re.match(pattern, other)
    assert 'subject.user == "elasticps"' in rule
