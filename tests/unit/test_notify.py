"""sd_notify against real datagram sockets, by path and abstract."""

from __future__ import annotations

import os
import socket
import time
import uuid

import pytest

from elasticps.daemon.notify import Notifier
from tests.support.processes import open_fds


@pytest.fixture(params=["path", "abstract"])
def manager(request, tmp_path):
    """A service manager's end: the socket, and the address as in NOTIFY_SOCKET."""
    if request.param == "path":
        address = str(tmp_path / "notify")
    else:
        address = f"@elasticps-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(address.replace("@", "\0", 1) if address[0] == "@" else address)
        channel.settimeout(5)
        yield channel, address


def test_each_message_reaches_the_manager(manager):
    channel, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    before = open_fds()
    notifier.ready("serving 3 shards")
    notifier.status("one\nREADY=1\ntwo")
    notifier.watchdog()
    notifier.stopping()
    received = [channel.recv(4096).decode() for _ in range(4)]
    assert received == [
        "READY=1\nSTATUS=serving 3 shards",
        "STATUS=one READY=1 two",
        "WATCHDOG=1",
        "STOPPING=1",
    ]
    assert open_fds() <= before


def test_reload_carries_the_monotonic_time(manager):
    channel, address = manager
    before = time.monotonic_ns() // 1000
    Notifier.from_environment({"NOTIFY_SOCKET": address}).reloading()
    kind, stamp = channel.recv(4096).decode().split("\n")
    assert kind == "RELOADING=1"
    key, usec = stamp.split("=")
    assert key == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.monotonic_ns() // 1000


def test_long_status_stays_within_a_datagram(manager):
    channel, address = manager
    Notifier.from_environment({"NOTIFY_SOCKET": address}).status("ü" * 100_000)
    assert len(channel.recv(65536)) < 4096


@pytest.mark.parametrize("environment", [{}, {"NOTIFY_SOCKET": ""}])
def test_without_a_socket_nothing_happens(environment, caplog):
    notifier = Notifier.from_environment(environment)
    notifier.ready("x")
    notifier.watchdog()
    notifier.stopping()
    assert caplog.records == []


def test_socket_of_an_unknown_kind_is_ignored_and_said(caplog):
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": "vsock:2:1234"})
    notifier.ready("x")
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_socket_that_is_gone_is_logged_once_an_outage(tmp_path, caplog):
    path = tmp_path / "notify"
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(path)})
    notifier.ready("x")
    notifier.watchdog()
    assert len(caplog.records) == 1
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(path))
        notifier.watchdog()
        assert channel.recv(100) == b"WATCHDOG=1"
    notifier.watchdog()
    notifier.watchdog()
    assert len(caplog.records) == 2


def test_manager_that_does_not_read_does_not_hold_up_the_daemon(manager, caplog):
    _, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    attempts = 0
    while not caplog.records and attempts < 5000:
        notifier.watchdog()
        attempts += 1
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("environment", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "20000000"}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": str(os.getpid())}, 10.0),
        ({"WATCHDOG_USEC": "20000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_watchdog_period_is_half_of_what_the_manager_allows(environment, period_s):
    assert Notifier.from_environment(environment).watchdog_period_s == period_s
