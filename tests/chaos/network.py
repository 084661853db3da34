"""A network of the campaign's own: each node in a namespace, this process at the hub between them.

It lives in a network and a mount namespace that end with the campaign's last process, so nothing
of it can stay behind. Packets between two nodes are forwarded here, and dropped here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

INSIDE = "TESTS_CHAOS_INSIDE"
NAMES = Path("/run/netns")


def can_be_made() -> str:
    """Why there can be no namespaces here; empty where there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        # All that is used later: forwarding, and rules by port that drop.
        trial = subprocess.run(
            [*_unshare(), sys.executable, "-c", _TRIAL], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        return f"network namespaces need {error.filename}"
    return "" if trial.returncode == 0 else f"no network namespaces: {trial.stderr.strip()[-200:]}"


def enter(module: str, arguments: list[str]) -> None:
    """Become the same program in namespaces of its own; does not return."""
    command = [*_unshare(), sys.executable, "-m", module, *arguments]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


def is_inside() -> bool:
    return os.environ.get(INSIDE) == "1"


class Network:
    """The hub, from inside the namespace that ``enter`` made. Addresses are 10.77.<n>.2."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        NAMES.mkdir(exist_ok=True)
        _ip("link", "set", "lo", "up")
        _run("mount", "-t", "tmpfs", "none", str(NAMES))
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")

    def add(self, node: str) -> None:
        """A namespace for the node, if it has none yet."""
        if node in self._numbers:
            return
        number = self._numbers[node] = len(self._numbers) + 1
        hub, inner = f"hub{number}", "eth0"
        _ip("netns", "add", node)
        _ip("link", "add", hub, "type", "veth", "peer", "name", inner, "netns", node)
        _ip("addr", "add", f"{self.gateway(node)}/24", "dev", hub)
        _ip("link", "set", hub, "up")
        _ip("-n", node, "link", "set", "lo", "up")
        _ip("-n", node, "addr", "add", f"{self.host(node)}/24", "dev", inner)
        _ip("-n", node, "link", "set", inner, "up")
        _ip("-n", node, "route", "add", "default", "via", self.gateway(node))

    def host(self, node: str) -> str:
        return f"10.77.{self._numbers[node]}.2"

    def gateway(self, node: str) -> str:
        return f"10.77.{self._numbers[node]}.1"

    def prefix(self, node: str) -> tuple[str, ...]:
        # Its mount namespace is its own too: no Unix socket leads from node to node.
        return ("ip", "netns", "exec", node)

    @contextmanager
    def dropping(self, source: str, target: str, *match: str) -> Iterator[None]:
        """What ``source`` sends to ``target`` is lost, or of that what matches."""
        rule = ["from", self.host(source), "to", self.host(target), *match]
        _ip("rule", "add", "pref", "10", *rule, "blackhole")
        try:
            yield
        finally:
            _ip("rule", "del", "pref", "10", *rule, "blackhole")

    @contextmanager
    def slow(self, node: str, rate: str) -> Iterator[None]:
        """What comes in at the node comes no faster than ``rate``."""
        device = self._device(node)
        shape = ("tbf", "rate", rate, "burst", "16kb", "latency", "1s")
        _run("tc", "qdisc", "add", *device, "root", *shape)
        try:
            yield
        finally:
            _run("tc", "qdisc", "del", *device, "root")

    def held_up(self, node: str) -> int:
        """How many packets to the node have waited, within ``slow``."""
        (shape,) = json.loads(_run("tc", "-s", "-j", "qdisc", "show", *self._device(node)))
        return int(shape["overlimits"])

    def _device(self, node: str) -> tuple[str, str]:
        return ("dev", f"hub{self._numbers[node]}")

    def dropped(self) -> int:
        """How many packets the hub has dropped so far."""
        text = Path("/proc/net/snmp").read_text().splitlines()
        names, values = (line.split() for line in text if line.startswith("Ip:"))
        row = dict(zip(names, values, strict=True))
        return int(row["InReceives"]) - int(row["InDelivers"]) - int(row["ForwDatagrams"])


_TRIAL = """
from tests.chaos.network import Network
network = Network()
network.add("one")
network.add("two")
with network.dropping("one", "two", "ipproto", "tcp", "dport", "9"), network.slow("one", "1mbit"):
    pass
"""


def _unshare() -> list[str]:
    return ["unshare", "--net", "--mount", "--propagation", "private"]


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
