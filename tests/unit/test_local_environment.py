"""What a local cluster's daemons hear of this process's variables."""

from __future__ import annotations

import pytest

from elasticps.daemon.local_cluster import _plain_environment


def test_a_daemons_own_settings_are_left_out_and_what_is_measured_with_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ELASTICPS_NODE", "of-the-machine")
    monkeypatch.setenv("ELASTICPS_THREADS_PER_SERVER", "1")
    monkeypatch.setenv("ELASTICPS_TRANSPORTS", "tcp")
    monkeypatch.setenv("HOME", "/home/me")
    heard = _plain_environment()
    assert heard["ELASTICPS_THREADS_PER_SERVER"] == "1"
    assert heard["ELASTICPS_TRANSPORTS"] == "tcp"
    assert heard["HOME"] == "/home/me"
    assert "ELASTICPS_NODE" not in heard
