"""The service under a real systemd, with certificates and tokens. In this order.

Marked ``long``: how it is restarted, hung, killed and stopped (`make test-long`).
"""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TypeVar

import pytest

from elasticps.security.files import write_new
from elasticps.security.tokens import Role, create_token
from tests.support.booted import BOOT_S, LOOK_S, PYTHON, Booted, CannotBoot, booted
from tests.support.etcd import EtcdServer
from tests.support.nodes import Authority

pytestmark = pytest.mark.timeout(900)

Found = TypeVar("Found")

DAEMON = "elasticpsd.service"
FILES = "/etc/elasticps/secrets"
CONNECTED = "03"
"""As /proc/net/unix says it."""
ONE = ("--max-workers", "1")
KEY = f"{FILES}/here-key.pem"
SECRETS = (KEY, f"{FILES}/tokens.json", f"{FILES}/token")
TRAINING = """
import os, pathlib, torch, elasticps

with elasticps.join() as run:
    print("uid", os.getuid(), "of", os.environ["ELASTICPS_WORKER"], flush=True)
    model = torch.nn.Linear(8, 1)
    optimizer = run.optimizer(model, "sgd", lr=0.01)
    data = torch.utils.data.TensorDataset(torch.ones(64, 8))
    for (x,) in run.data(data, batch_size=8, epochs=1_000_000):
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
        if pathlib.Path("/opt/elasticps/enough").exists():
            break
"""
THIEF = """
import asyncio, os, torch, elasticps
from elasticps.errors import PeerUnavailable
from elasticps.wire.address import Address
from elasticps.worker.agent import Agent

def stolen(uid):
    address = Address.parse(os.environ["ELASTICPS_AGENT"])
    try:
        asyncio.run(Agent().connect(address, uid))
    except PeerUnavailable:
        return "refused"
    return "given"

def opened(path):
    try:
        open(path).close()
    except PermissionError:
        return "closed"
    return "read"

with elasticps.join() as run:
    model = torch.nn.Linear(8, 1)
    optimizer = run.optimizer(model, "sgd", lr=0.01)
    data = torch.utils.data.TensorDataset(torch.ones(64, 8))
    for step, (x,) in enumerate(run.data(data, batch_size=8, epochs=1_000_000)):
        optimizer.zero_grad()
        model(x).mean().backward()
        optimizer.step()
        if step == 5:
            node, number = os.environ["ELASTICPS_WORKER"].split(".")
            passes = [stolen(f"{node}.{int(number) + way}") for way in (-1, 1)]
            files = [opened(path) for path in SECRETS]
            print("thief", os.getuid(), "passes", *passes, "files", *files, flush=True)
"""
FAILING = """
import sys
print("to stdout", flush=True)
print("to stderr", file=sys.stderr, flush=True)
raise RuntimeError("as it was meant")
"""


@dataclass(slots=True)
class Service:
    """The booted machine with the service installed and started, node ``here`` of a cluster."""

    machine: Booted
    etcd: EtcdServer
    api: str

    def ask(self, *argv: str, check: bool = True) -> str:
        proof = ("--api", self.api, "--ca", f"{FILES}/ca.pem", "--token-file", f"{FILES}/token")
        return self.machine.elasticps(*proof, *argv, check=check)

    def reload(self, old: str, new: str) -> None:
        """Put ``new`` in place of ``old`` in the configuration."""
        file = self.machine.root / "etc/elasticps/elasticps.toml"
        file.write_text(file.read_text().replace(old, new))
        self.machine.run("systemctl", "reload", DAEMON)
        self.machine.until(DAEMON, "StatusText", "configuration reloaded")

    def submit(self, text: str, *options: str) -> str:
        """The name of a new job that runs ``text``."""
        script = self.machine.root / "opt/elasticps/script.py"
        script.write_text(text)
        answer = self.ask("submit", *options, "--json", "/opt/elasticps/script.py")
        return str(json.loads(answer[answer.index("{") :])["job"])

    def job(self, name: str) -> dict[str, object]:
        jobs = json.loads(self.ask("jobs", "--json"))["jobs"]
        return next(job for job in jobs if job["job"] == name)

    def until_job(self, name: str, what: str, *values: object) -> dict[str, object]:
        self.until(lambda: self.job(name)[what] in values)
        return self.job(name)

    def checkpoint(self, name: str) -> int:
        """The round of the job's newest checkpoint; 0 while there is none."""
        found = self.job(name)["checkpoint"]
        assert isinstance(found, dict | None)
        assert not (found and found["error"]), found
        return int(found["round"]) if found else 0

    def until(self, look: Callable[[], Found]) -> Found:
        """What ``look`` says, once that is true."""
        deadline = time.monotonic() + BOOT_S
        while not (found := look()):
            assert time.monotonic() < deadline, self.journal()[-3000:]
            time.sleep(LOOK_S)
        return found

    def worker_units(self) -> list[str]:
        listed = self.machine.run(
            "systemctl", "list-units", "--plain", "--no-legend", "elasticps-worker@*"
        )
        return [line.split()[0] for line in listed.splitlines()]

    def journal(self) -> str:
        return self.machine.run("journalctl", "--no-pager")

    def main_pid(self) -> str:
        return self.machine.show(DAEMON, "MainPID")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with ExitStack() as stack:
        try:
            machine = stack.enter_context(booted(tmp_path_factory.mktemp("booted")))
        except CannotBoot as why:
            pytest.skip(f"NOT TESTED: the units were started under no systemd: {why}")
        etcd = stack.enter_context(EtcdServer(tmp_path_factory.mktemp("etcd")))
        etcd.wait_ready()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        machine.elasticps("service", "install", "--yes")
        _put_secrets(machine)
        (machine.root / "etc/elasticps/elasticps.toml").write_text(
            f'node = "here"\nhttp = "127.0.0.1:{port}"\nworkers = 2\nweight = 1.0\n'
            f'tokens = "{FILES}/tokens.json"\n[etcd]\nendpoints = ["{etcd.endpoint}"]\n'
            f'[tls]\nca = "{FILES}/ca.pem"\ncert = "{FILES}/here.pem"\nkey = "{KEY}"\n'
        )
        slow = machine.root / f"etc/systemd/system/{DAEMON}.d/test.conf"
        slow.parent.mkdir()
        slow.write_text("[Service]\nTimeoutStartSec=300\nTimeoutStopSec=180\n")
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "enable", "--now", "elasticps.target")
        yield Service(machine, etcd, f"https://127.0.0.1:{port}")
        machine.run("systemctl", "stop", "elasticps.target")


def _put_secrets(machine: Booted) -> None:
    """Certificates of two nodes, tokens and root's own, all the daemon's user's."""
    directory = machine.root / FILES.removeprefix("/")
    authority = Authority(directory)
    for node in ("here", "peer"):
        authority.node(node)
    token = create_token(directory / "tokens.json", "root", Role.ADMIN)
    write_new(directory / "token", token.encode())
    machine.run("chown", "-R", "elasticps:elasticps", FILES)
    machine.run("chmod", "0755", FILES)


def test_daemon_is_ready_once_it_is_registered(service: Service) -> None:
    machine = service.machine
    machine.until(DAEMON, "ActiveState", "active")
    assert machine.show(DAEMON, "StatusText") == "node here of cluster default"
    assert json.loads(service.ask("nodes", "--json"))["nodes"][0]["node"] == "here"
    told = machine.elasticps("service", "status")
    assert "active (running)" in told
    assert machine.show("elasticps.target", "ActiveState") == "active"


def test_daemon_has_its_own_user_and_no_capability(service: Service) -> None:
    status = service.machine.run("cat", f"/proc/{service.main_pid()}/status")
    user = service.machine.run("id", "-u", "elasticps")
    assert re.search(rf"(?m)^Uid:\s+{user}\s", status)
    assert re.search(r"(?m)^CapBnd:\s+0+$", status)
    assert re.search(r"(?m)^NoNewPrivs:\s+1$", status)


def test_reload_is_told_to_systemd(service: Service) -> None:
    machine, pid = service.machine, service.main_pid()
    service.reload("weight = 1.0", "weight = 2.5")
    service.until(lambda: json.loads(service.ask("nodes", "--json"))["nodes"][0]["weight"] == 2.5)
    assert (service.main_pid(), machine.show(DAEMON, "ActiveState")) == (pid, "active")


@pytest.mark.long
def test_restart_that_was_asked_for_is_systemds_to_do(service: Service) -> None:
    pid = service.main_pid()
    assert "here: restarted in " in service.ask("restart", "here")
    assert service.main_pid() != pid
    assert service.machine.show(DAEMON, "ActiveState") == "active"
    assert service.machine.show(DAEMON, "NRestarts") == "1"
    assert "node=here left, exit code 75" in service.journal()


def test_user_code_runs_in_a_unit_of_its_own_and_says_why_it_failed(service: Service) -> None:
    name = service.submit(FAILING, *ONE)
    job = service.until_job(name, "state", "FAILED")
    assert isinstance(job["failure"], dict)
    assert job["failure"]["reason"] == "RuntimeError: as it was meant"
    assert "script.py" in job["failure"]["traceback"]
    output = service.ask("logs", name)
    assert "to stdout" in output
    assert "to stderr" in output
    began = re.findall(r"Started (elasticps-worker@\d+.service)", service.journal())
    assert len(began) == 1
    service.machine.until(began[0], "ActiveState", "inactive")
    left = service.machine.run("ls", "-A", "/run/elasticps").split()
    assert set(left) == {
        "control.sock",
        "data.sock",
        "data.sock.mem",
        "shard-server.doing",
    }


def test_worker_has_a_user_that_is_not_the_daemons_and_is_limited(service: Service) -> None:
    machine = service.machine
    name = service.submit(TRAINING, *ONE)
    found = service.until(lambda: re.search(r"uid (\d+) of here", service.ask("logs", name)))
    assert found is not None
    assert found[1] not in ("0", machine.run("id", "-u", "elasticps"))
    (unit,) = service.worker_units()
    assert machine.show(unit, "DynamicUser") == "yes"
    for limit in ("MemoryMax", "TasksMax", "CPUQuotaPerSecUSec"):
        assert machine.show(unit, limit) not in ("", "infinity")
    stranger = (
        "import socket, sys; s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        " print(s.recv(100))"
    )
    number = unit.removeprefix("elasticps-worker@").removesuffix(".service")
    called = machine.run(PYTHON, "-c", stranger, f"/run/elasticps/{number}.sock")
    assert called == "b''", "what to run is for the unit's own process, even root's gets nothing"
    before = service.job(name)["round"] or 0
    service.until(lambda: service.job(name)["round"] not in (None, before))
    service.ask("cancel", name)
    service.machine.until(unit, "ActiveState", "inactive", "failed")


@pytest.mark.long
def test_a_killed_worker_is_started_again_and_goes_on_with_its_checkpoints(
    service: Service,
) -> None:
    kept = "/var/lib/elasticps-jobs/kept"
    name = service.submit(TRAINING, *ONE, "--checkpoint-dir", kept, "--checkpoint-every", "50")
    service.until(lambda: "uid " in service.ask("logs", name))
    first = service.until(lambda: service.checkpoint(name))
    (unit,) = service.worker_units()
    service.machine.run("systemctl", "kill", "--signal=SIGKILL", unit)
    service.until(lambda: service.ask("logs", name).count("uid ") >= 2)
    uids = re.findall(r"uid (\d+)", service.ask("logs", name))
    reached = service.until(lambda: service.job(name)["round"])
    assert isinstance(reached, int)
    service.until(lambda: service.checkpoint(name) > max(first, reached))
    (again,) = service.worker_units()
    assert (again != unit, len(set(uids))) == (True, 2)
    service.ask("cancel", name)
    service.machine.until(again, "ActiveState", "inactive", "failed")


def test_workers_of_two_units_sum_and_neither_has_the_others_pass_nor_the_nodes_key(
    service: Service,
) -> None:
    options = ("--strategy", "all-reduce", "--start-workers", "2")
    name = service.submit(THIEF.replace("SECRETS", repr(SECRETS)), *options)
    said = r"thief (\d+) passes refused refused files closed closed closed$"
    service.until(lambda: service.ask("logs", name).count("thief ") == 2)
    users = re.findall(f"(?m){said}", service.ask("logs", name))
    assert len(set(users)) == 2, service.ask("logs", name)
    lives = re.findall(rf"job={name} worker=(here\.\d+) started", service.journal())
    for uid in lives:
        assert f"a process says it is worker {uid}, which was not started here" in service.journal()
    before = service.job(name)["round"]
    service.until(lambda: service.job(name)["round"] != before)
    units = service.worker_units()
    service.ask("cancel", name)
    for unit in units:
        service.machine.until(unit, "ActiveState", "inactive", "failed")


@pytest.mark.long
def test_workers_of_two_units_fetch_from_each_other_by_unix_sockets(service: Service) -> None:
    name = service.submit(TRAINING, "--strategy", "gossip", "--start-workers", "2")

    def accepted() -> set[str]:
        rows = map(str.split, service.machine.run("cat", "/proc/net/unix").splitlines())
        return {row[7] for row in rows if row[5] == CONNECTED and "/elasticps-workers/" in row[-1]}

    service.until(lambda: len(accepted()) == 2)
    units = service.worker_units()
    service.ask("cancel", name)
    for unit in units:
        service.machine.until(unit, "ActiveState", "inactive", "failed")


def test_daemons_user_may_start_workers_and_nothing_else(service: Service) -> None:
    as_daemon = ("runuser", "-u", "elasticps", "--", "systemctl", "--no-ask-password")
    service.machine.run("systemctl", "is-active", DAEMON)
    for argv in (("stop", DAEMON), ("start", "systemd-hostnamed.service"), ("daemon-reload",)):
        said = service.machine.run(*as_daemon, *argv, check=False)
        assert re.search("[Aa]ccess denied|authentication required", said), said
    service.machine.run("systemctl", "is-active", DAEMON)


@pytest.mark.long
def test_hung_daemon_is_killed_by_the_watchdog_and_comes_back(service: Service) -> None:
    machine = service.machine
    name, pid = service.submit(TRAINING, *ONE), service.main_pid()
    service.until(lambda: "uid " in service.ask("logs", name))
    (unit,) = service.worker_units()
    restarts = int(machine.show(DAEMON, "NRestarts"))
    machine.run("kill", f"-{signal.SIGSTOP.value}", pid)
    machine.until(DAEMON, "NRestarts", str(restarts + 1))
    machine.until(DAEMON, "ActiveState", "active")
    assert service.main_pid() != pid
    assert "Watchdog timeout" in machine.run("journalctl", "-u", DAEMON, "--no-pager")
    # The hung one could not stop its worker.
    machine.until(unit, "ActiveState", "inactive", "failed")


@pytest.mark.long
def test_stop_drains_the_node_and_loses_no_push(service: Service) -> None:
    machine = service.machine
    service.reload("workers = 2", "workers = 1")
    state = "/var/lib/elasticps/peer"
    machine.run(
        "systemd-run", "--unit=peer", "--property=User=elasticps", "--property=Type=notify",
        PYTHON, "-P", "-m", "elasticps", "daemon", "--config", "/dev/null", "--node", "peer",
        "--etcd", service.etcd.endpoint, "--http", "127.0.0.1:0", "--state-dir", state,
        "--log-dir", state, "--runtime-dir", state, "--tls-ca", f"{FILES}/ca.pem",
        "--tls-cert", f"{FILES}/peer.pem", "--tls-key", f"{FILES}/peer-key.pem",
        "--tokens", f"{FILES}/tokens.json",
    )  # fmt: skip
    machine.until("peer.service", "ActiveState", "active")
    nodes = {node["node"]: node for node in json.loads(service.ask("nodes", "--json"))["nodes"]}
    name = service.submit(TRAINING, "--audit", "--start-workers", "2")
    service.until(lambda: service.ask("logs", name).count("uid ") >= 2)
    service.until_job(name, "under_replicated", 0)
    service.api = nodes["peer"]["http"]
    machine.run("systemctl", "stop", DAEMON)
    assert machine.show(DAEMON, "Result") == "success"
    assert machine.show(DAEMON, "ExecMainStatus") == "0"
    assert service.worker_units() == []
    job = service.job(name)
    assert job["state"] == "RUNNING"
    assert set(job["blocks_by_node"]) == {"peer"}  # type: ignore[call-overload]
    (machine.root / "opt/elasticps/enough").write_text("")
    job = service.until_job(name, "state", "SUCCEEDED", "FAILED")
    assert job["state"] == "SUCCEEDED"
    verdict = job["verdict"]
    assert isinstance(verdict, dict)
    assert (verdict["lost"], verdict["duplicated"], verdict["unaudited"]) == (0, 0, 0)
    assert verdict["workers"] == 2
    machine.run("systemctl", "stop", "peer.service")
