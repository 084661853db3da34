"""SIGHUP: what is taken of a new configuration, and what is left."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from elasticps.daemon.config import DaemonConfig, Security
from elasticps.daemon.notify import Notifier
from elasticps.daemon.reload import Reload, reloaded
from elasticps.daemon.settings import SETTINGS
from elasticps.errors import UsageError
from elasticps.security.tls import TlsFiles
from elasticps.store.config import StoreConfig

SECURITY = Security(
    tls=TlsFiles(ca=Path("/ca"), cert=Path("/cert"), key=Path("/key")), tokens=Path("/tokens")
)
OLD = DaemonConfig(etcd=StoreConfig(endpoints=("a:1",)), node="n1")


def test_what_can_be_reloaded_is_taken_and_the_rest_is_named_and_left():
    new = replace(
        OLD,
        labels={"rack": "12"},
        weight=2.0,
        lease_ttl_s=9,
        etcd=StoreConfig(endpoints=("b:2",)),
        node="n2",
    )
    config, taken, left = reloaded(OLD, new)
    assert config == replace(OLD, labels={"rack": "12"}, weight=2.0)
    assert (set(taken), set(left)) == ({"labels", "weight"}, {"lease_ttl", "etcd", "node"})


def test_other_certificates_and_tokens_wait_for_a_restart(monkeypatch):
    monkeypatch.setattr(DaemonConfig, "_check_security", lambda *_: None)
    config, taken, left = reloaded(OLD, replace(OLD, security=SECURITY))
    assert (config, taken, left) == (OLD, (), ("security",))


def test_a_configuration_that_is_wrong_changes_nothing():
    given: list[DaemonConfig] = []

    def read() -> DaemonConfig:
        if not answers:
            raise UsageError("600 is out of range", field="lease_ttl")
        return answers.pop()

    answers = [replace(OLD, weight=3.0)]
    reload = Reload(OLD, read, given.append, Notifier(None))
    assert reload.now() == "configuration reloaded"
    assert reload.now() == "reload refused: 600 is out of range"
    answers.append(replace(OLD, weight=3.0, node="n2"))
    reload.now()
    assert given == [replace(OLD, weight=3.0)] * 2


@pytest.mark.parametrize("key", ["node", "cluster", "http", "data", "etcd.endpoints", "state_dir"])
def test_what_a_node_is_never_changes_while_it_lives(key):
    assert not next(setting for setting in SETTINGS if setting.key == key).reload
