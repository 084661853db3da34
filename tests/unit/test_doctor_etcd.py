"""What the doctor says of an etcd by its version and its latency."""

from __future__ import annotations

import pytest

from elasticps.doctor.checks.etcd import of_version
from elasticps.doctor.finding import Level
from elasticps.store import StoreConfig
from elasticps.store.operations import ServerStatus

HERE, AWAY = "127.0.0.1:2379", "10.0.0.7:2379"


@pytest.mark.parametrize(
    ("target", "version", "took_s", "level", "fix"),
    [
        (AWAY, "3.6.0", 0.001, Level.OK, ""),
        (AWAY, "3.5.6", 0.001, Level.OK, ""),
        (AWAY, "3.5.6", 0.2, Level.WARNING, "a slow disk"),
        (AWAY, "3.5.3", 0.001, Level.WARNING, "before 3.5.6"),
        (HERE, "3.5.3", 0.001, Level.OK, ""),
        (AWAY, "3.5.2", 0.001, Level.WARNING, "can lose writes that it has acknowledged"),
        (HERE, "3.5.0-rc.1", 0.2, Level.WARNING, "can lose writes that it has acknowledged"),
        (HERE, "3.4.30", 0.001, Level.OK, ""),
        (HERE, "3.3.27", 0.001, Level.FAULT, "it must be 3.4 or newer"),
    ],
)
def test_an_etcd_that_can_lose_what_it_has_acknowledged_is_told_with_the_reason(
    target: str, version: str, took_s: float, level: Level, fix: str
) -> None:
    status = ServerStatus(
        version=version, leader=1, revision=1, db_size=0, db_size_in_use=0, errors=()
    )
    found = of_version(target, status, took_s, StoreConfig(endpoints=(f"http://{target}",)))
    assert found.level is level
    assert fix in found.fix
    assert found.saw.startswith(f"{target}: etcd {version}, ")
