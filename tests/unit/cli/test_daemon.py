"""``elasticps daemon``: what its options and variables make of the configuration."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest

from elasticps.cli.main import main
from elasticps.daemon.config import DaemonConfig
from elasticps.errors import UsageError
from elasticps.store.config import StoreConfig
from tests.support.daemon_command import config

ETCD = StoreConfig(endpoints=("127.0.0.1:2379",))
PEM = "-----BEGIN CERTIFICATE-----\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith(("ELASTICPS_", "XDG_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("ELASTICPS_CONFIG", os.devnull)
    monkeypatch.setattr(socket, "gethostname", lambda: "Machine-A.lan")
    monkeypatch.chdir(tmp_path)


def test_defaults_are_loopback_and_this_machine():
    made = config()
    assert made == DaemonConfig(etcd=ETCD)
    assert (made.node, made.cluster) == ("machine-a.lan", "default")
    assert (made.http, made.data) == (("127.0.0.1", 7400), ("127.0.0.1", 0))


def test_folders_are_the_systems_for_root_and_the_users_own_otherwise(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    made = config()
    assert (made.state_dir, made.log_dir, made.runtime_dir) == (
        Path("/var/lib/elasticps"),
        Path("/var/log/elasticps"),
        Path("/run/elasticps"),
    )
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("STATE_DIRECTORY", "/var/lib/elasticps")  # of the unit
    assert config().runtime_dir == Path("/run/elasticps")
    monkeypatch.delenv("STATE_DIRECTORY")
    monkeypatch.setenv("XDG_STATE_HOME", "/s")
    made = config()
    assert made.runtime_dir == Path("/s/elasticps/run")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/r")
    made = config()
    assert (made.state_dir, made.log_dir, made.runtime_dir) == (
        Path("/s/elasticps"),
        Path("/s/elasticps/log"),
        Path("/r/elasticps"),
    )


def test_every_option_arrives(tmp_path):
    for name in ("ca", "cert", "key"):
        (tmp_path / name).write_text(PEM)
        (tmp_path / name).chmod(0o600)
    password = tmp_path / "password"
    password.write_text("s3cret\n")
    password.chmod(0o600)
    made = config(
        "--node", "n1", "--cluster", "lab", "--etcd", "a:1, https://b:2", "--etcd-ca", "ca",
        "--etcd-cert", "cert", "--etcd-key", "key", "--etcd-user", "me",
        "--etcd-password-file", "password", "--http", "[::1]:0", "--data", "localhost:7401",
        "--label", "rack=12", "--label", "gpu=h100,fast=", "--zone", "a", "--weight", "2.5",
        "--workers", "0", "--lease-ttl", "3", "--drain-timeout", "0", "--state-dir", "s",
        "--log-dir", "/l", "--runtime-dir", "r", "--allow-insecure-network", "--log-level", "debug",
        "--lost-after", "7", "--kept-jobs", "5", "--threads-per-worker", "3",
        "--threads-per-server", "5",
    )  # fmt: skip
    assert made == DaemonConfig(
        node="n1",
        cluster="lab",
        etcd=StoreConfig(
            endpoints=("a:1", "https://b:2"),
            ca=tmp_path / "ca",
            cert=tmp_path / "cert",
            key=tmp_path / "key",
            username="me",
            password="s3cret",
        ),
        http=("::1", 0),
        data=("localhost", 7401),
        labels={"rack": "12", "gpu": "h100", "fast": ""},
        zone="a",
        weight=2.5,
        worker_slots=0,
        lease_ttl_s=3,
        drain_timeout_s=0,
        state_dir=tmp_path / "s",
        log_dir=Path("/l"),
        runtime_dir=tmp_path / "r",
        allow_insecure_network=True,
        log_level="debug",
        lost_after_s=7,
        kept_jobs=5,
        threads_per_worker=3,
        threads_per_server=5,
    )
    assert "s3cret" not in repr(made)


def test_variables_go_before_defaults_and_flags_before_variables(monkeypatch):
    for name, text in {
        "NODE": "n7",
        "ETCD": "a:1,b:2",
        "HTTP": "127.0.0.1:7070",
        "LABELS": "zone=a,rack=12",
        "STATE_DIR": "/var/lib/elasticps",
        "WEIGHT": "",
    }.items():
        monkeypatch.setenv(f"ELASTICPS_{name}", text)
    made = config("--node", "n8")
    assert made.node == "n8"
    assert made.etcd.endpoints == ("a:1", "b:2")
    assert made.http == ("127.0.0.1", 7070)
    assert made.labels == {"zone": "a", "rack": "12"}
    assert made.zone == "a"
    assert made.weight == 1.0


@pytest.mark.parametrize(
    ("args", "field", "limit"),
    [
        (["--http", "127.0.0.1:70000"], "http", "0 to 65535"),
        (["--http", "127.0.0.1"], "http", "host:port"),
        (["--http", "::1:80"], "http", "host:port"),
        (["--data", "127.0.0.1:-1"], "data", "0 to 65535"),
        (["--data", "ho st:1"], "data", "host:port"),
        (["--http", "127.0.0.1:7400", "--data", "127.0.0.1:7400"], "data", "cannot share"),
        (["--http", "0.0.0.0:7400"], "http", "a loopback address"),
        (["--data", "machine-a:0"], "data", "a loopback address"),
        (["--node", "N1"], "node", "[a-z0-9]"),
        (["--node", "n" * 64], "node", "{0,62}"),
        (["--node", "a/b"], "node", "[a-z0-9]"),
        (["--cluster", "../x"], "cluster", "[a-z0-9]"),
        (["--label", "rack"], "labels", "key=value"),
        (["--label", "=x"], "labels", "key=value"),
        (["--label", "a=<script>"], "labels", "key=value"),
        (["--label", "a=1", "--label", "a=2"], "labels", "twice"),
        (["--zone", "a b"], "zone", "[A-Za-z0-9]"),
        (["--weight", "nan"], "weight", "more than 0"),
        (["--weight", "inf"], "weight", "at most"),
        (["--weight", "-1"], "weight", "more than 0"),
        (["--workers", "-1"], "workers", "0 to 1024"),
        (["--workers", "1000000"], "workers", "0 to 1024"),
        (["--lease-ttl", "0"], "lease_ttl", "1 to 60"),
        (["--lease-ttl", "nan"], "lease_ttl", "a whole number"),
        (["--drain-timeout", "nan"], "drain_timeout", "0 to 86400"),
        (["--state-dir", "a\nb"], "state_dir", "one line"),
        (["--etcd", ","], "endpoints", "host:port"),
        (["--etcd", "h:70000"], "endpoints", "1 to 65535"),
        (["--etcd-key", "/nowhere/key"], "etcd.key", "/nowhere/key"),
        (["--etcd-user", "me"], "etcd.password_file", ""),
        (["--etcd-password-file", "/nowhere/password"], "etcd.password_file", "cannot be read"),
        (["--lable", "a=b"], "--lable", "--label"),
    ],
    ids=" ".join,
)
def test_bad_options_exit_2_and_name_field_and_limit(args, field, limit, capsys):
    assert main(["daemon", *args]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert field in err
    assert limit in err


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o602])
def test_a_password_that_others_may_see_or_change_is_refused(mode, tmp_path, capsys):
    path = tmp_path / "password"
    path.write_text("s3cret\n")
    path.chmod(mode)
    assert main(["daemon", "--etcd-user", "me", "--etcd-password-file", str(path)]) == 2
    err = capsys.readouterr().err
    assert "etcd.password_file" in err
    assert "chmod 600" in err
    assert "s3cret" not in err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_consent(host):
    assert DaemonConfig(etcd=ETCD, http=(host, 1)).http == (host, 1)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "machine-b"])
def test_the_network_needs_consent(host):
    with pytest.raises(UsageError, match="allow-insecure-network") as caught:
        DaemonConfig(etcd=ETCD, data=(host, 1))
    assert caught.value.field == "data"
    DaemonConfig(etcd=ETCD, data=(host, 1), allow_insecure_network=True)


@pytest.mark.parametrize(
    "change",
    [
        {"http": ("127.0.0.1", 70000)},
        {"state_dir": Path("relative")},
        {"labels": {f"k{number}": "v" for number in range(65)}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_configuration_made_by_hand_is_checked_too(change: dict[str, Any]):
    with pytest.raises(UsageError) as caught:
        DaemonConfig(etcd=ETCD, **change)
    assert caught.value.field in change
    assert caught.value.limit
