"""What the doctor says of a running cluster, by what its API has told; the command around it."""

from __future__ import annotations

import json
import os
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from elasticps.cli.main import main
from elasticps.core.ids import NodeId
from elasticps.daemon.machine_facts import MachineFacts, Space
from elasticps.daemon.measured_link import MeasuredLink
from elasticps.doctor.checks.links import bits
from elasticps.doctor.cluster import CHECKS, examine
from elasticps.doctor.etcd_http import Clock
from elasticps.doctor.finding import Level, Row
from elasticps.doctor.seen import JobSeen, Member, Seen
from tests.support.fake_api import FakeApi, job, node, verdict

GIB = 1 << 30
FACTS = MachineFacts(
    unix_s=0.0,
    elasticps="0.1.0",
    python="3.11.7",
    torch="2.8.0",
    plugins=("codecs/int8 elasticps 0.1.0",),
    open_files=65_536,
    locked_bytes=64 << 20,
    has_rdma=False,
    shared_memory=Space(total=GIB, free=GIB),
    folders={"state_dir": Space(total=9 * GIB, free=9 * GIB)},
)


def link(to: str, rate: float | None = 1e9, trip_s: float = 2e-4, error: str = "") -> MeasuredLink:
    return MeasuredLink(
        to=NodeId(to), round_trip_s=None if error else trip_s, bytes_per_s=rate, error=error
    )


def test_one_node_is_told_in_the_singular() -> None:
    whole = well()
    for members, told in (
        (whole.members, "3 nodes answer, "),
        (whole.members[:1], "1 node answers, "),
    ):
        rows = examine(replace(whole, members=members))
        assert any(row.saw == f"{told}a leads" for row in rows)


def well() -> Seen:
    names = ("a", "b", "c")
    return Seen(
        cluster="lab",
        leader="a",
        members=tuple(
            Member(name=name, state="ready", reachable=True, restarts=0) for name in names
        ),
        jobs=(job_seen(),),
        facts=dict.fromkeys(names, FACTS),
        clocks={name: Clock(least=-0.01, most=0.01) for name in names},
        links={name: tuple(link(to) for to in names if to != name) for name in names},
    )


def job_seen(**changes: Any) -> JobSeen:
    fields: dict[str, Any] = {
        "name": "j",
        "replicas": 2,
        "under_replicated": 0,
        "pending_moves": 0,
        "failed_checkpoints": 0,
        "lost": 0,
        "duplicated": 0,
        **changes,
    }
    return JobSeen(**fields)


def trouble(seen: Seen) -> list[Row]:
    return [row for row in examine(seen) if row.level is not Level.OK]


def with_facts(**changes: Any) -> Seen:
    seen = well()
    return replace(seen, facts={**seen.facts, "b": msgspec.structs.replace(FACTS, **changes)})


def with_job(**changes: Any) -> Seen:
    return replace(well(), jobs=(job_seen(**changes),))


def test_a_cluster_that_is_well_has_no_trouble_and_every_check_says_so():
    assert trouble(well()) == []
    assert {row.check for row in examine(well())} == {name for name, _ in CHECKS}


UNHEARD = Member(name="d", state="ready", reachable=False, restarts=0)
FELL = Member(name="d", state="ready", reachable=True, restarts=4)
EIGHTY_S = {"a": Clock(least=0.0, most=0.1), "b": Clock(least=80.0, most=80.1)}
NARROW = {"a": (link("b"), link("c", rate=4e6)), "b": (link("a"),)}
ODD = {"a": (link("b"), link("c", rate=1e8)), "b": (link("a"), link("c"))}


@pytest.mark.parametrize(
    ("seen", "level", "saw", "fix"),
    [
        (replace(well(), leader=None), "fault", "no daemon leads", "write to etcd"),
        (
            replace(well(), members=(*well().members, UNHEARD)),
            "fault",
            "d does not answer",
            "systemctl status elasticpsd",
        ),
        (
            replace(well(), members=(*well().members, FELL)),
            "warning",
            "started again 4 times",
            "shard-server.log",
        ),
        (with_facts(elasticps="0.2.0"), "warning", "0.2.0 on b", "restart --rolling"),
        (with_facts(torch="2.7.0"), "warning", "2.7.0 on b", "same packages"),
        (with_facts(python="3.12.1"), "warning", "3.12.1 on b", "same packages"),
        (
            with_facts(plugins=(*FACTS.plugins, "codecs/dct elasticps-dct 0.1")),
            "warning",
            "b alone has codecs/dct",
            "pip install it on a, c",
        ),
        (with_facts(open_files=200), "fault", "open files: 200", "LimitNOFILE"),
        (with_facts(open_files=1024), "warning", "open files: 1024", "LimitNOFILE"),
        (
            with_facts(locked_bytes=65_536, has_rdma=True),
            "warning",
            "RDMA device",
            "LimitMEMLOCK",
        ),
        (
            with_facts(shared_memory=Space(total=64 << 20, free=64 << 20)),
            "warning",
            "64.0 MiB free",
            "--shm-size",
        ),
        (with_facts(shared_memory=None), "warning", "no /dev/shm", "num_workers=0"),
        (
            with_facts(folders={"log_dir": Space(total=GIB, free=1 << 20)}),
            "fault",
            "log_dir: 1.0 MiB free",
            "make room",
        ),
        (
            with_facts(certificate_until=time.time() - 90_000),
            "fault",
            "its certificate ended",
            "certs issue",
        ),
        (
            with_facts(certificate_until=time.time() + 90_000),
            "warning",
            "good for 1 days",
            "certs issue",
        ),
        (replace(well(), clocks=EIGHTY_S), "warning", "b is 80 s ahead of a", "set-ntp"),
        (
            replace(well(), links={"a": (link("b", error="refused (tcp:10.0.0.8:7401)"),)}),
            "fault",
            "a does not reach the data port of b: refused",
            "firewall",
        ),
        (replace(well(), links=NARROW), "warning", "a to c: 32 Mbit/s", "plan --link"),
        (replace(well(), links=ODD), "warning", "a to c: 800 Mbit/s, others 8 Gbit/s", "ethtool"),
        (
            replace(well(), links={"a": (link("b", trip_s=0.08),)}),
            "warning",
            "a to b: 80 ms",
            "local-sgd",
        ),
        (with_job(under_replicated=3), "warning", "3 blocks lack copies", "wait"),
        (with_job(under_replicated=3, replicas=4), "warning", "3 nodes are there", "add a node"),
        (with_job(failed_checkpoints=2), "warning", "2 checkpoints failed", "elasticps status"),
        (with_job(lost=1), "fault", "1 pushes lost", "report it"),
        (
            replace(well(), unasked={"b": "no route"}),
            "not checked",
            "b: no route",
            "reaches its API",
        ),
        (replace(well(), unmeasured={"b": "for read"}), "not checked", "for read", "role admin"),
        (replace(well(), left_out=20), "not checked", "the width of 20 links", ""),
    ],
)
def test_trouble_is_named_with_what_to_do(seen, level, saw, fix):
    (row,) = trouble(seen)
    assert row.level.value == level
    assert saw in row.saw
    assert fix in row.fix


def test_rates_are_told_as_networks_are():
    assert [bits(rate) for rate in (1.25e9, 12.5e6, 1e3)] == ["10 Gbit/s", "100 Mbit/s", "8 kbit/s"]


# -- the command ------------------------------------------------------------------------------


@pytest.fixture
def doctor(capsys, monkeypatch, tmp_path):
    """Runs the command: its exit code and its stdout."""
    for name in [name for name in os.environ if name.startswith("ELASTICPS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("ELASTICPS_CONFIG", "/dev/null")

    def run(*args: str) -> tuple[int, str]:
        code = main(args)
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, out

    return run


def fake_of(facts: MachineFacts) -> FakeApi:
    api = FakeApi()
    api.errors["/api/v1/machine"] = (200, msgspec.to_builtins(facts))
    api.errors["/api/v1/links"] = (200, {"node": "n1", "links": []})
    return api


def test_the_table_fits_80_columns_and_a_fault_makes_the_exit_code_1(doctor):
    with fake_of(msgspec.structs.replace(FACTS, open_files=100)) as api:
        api.nodes = [node("n1", leader=True, http=api.url)]
        api.jobs["j"] = job("j", verdict=verdict(10, lost=2, workers=1))
        code, out = doctor("--api", api.url, "doctor", "--only", "cluster")
    assert code == 1
    assert max(map(len, out.splitlines())) <= 80
    assert "2 pushes lost" in out
    assert "-> " in out
    assert "2 faults" in out


def test_warnings_alone_exit_with_0_and_json_has_each_row(doctor):
    with fake_of(msgspec.structs.replace(FACTS, open_files=1024)) as api:
        api.nodes = [node("n1", leader=True, http=api.url)]
        code, out = doctor("--api", api.url, "doctor", "--only", "cluster", "--json")
    told = json.loads(out)
    assert (code, told["faults"], told["warnings"]) == (0, 0, 1)
    (row,) = [row for row in told["rows"] if row["level"] == "warning"]
    assert (row["where"], row["check"]) == ("node n1", "open files")
    assert row["fix"]


def test_a_daemon_that_was_named_and_does_not_answer_is_a_fault(doctor):
    code, out = doctor("--api", "http://127.0.0.1:1", "doctor", "--only", "cluster")
    assert code == 1
    assert "cannot be reached" in out


def test_a_configuration_that_cannot_be_read_is_a_fault_with_the_key(doctor, tmp_path):
    file = tmp_path / "elasticps.toml"
    file.write_text('htpp = "127.0.0.1:7400"\n')
    code, out = doctor("doctor", "--only", "machine", "--config", str(file))
    assert code == 1
    assert "htpp" in out
    assert "did you mean http?" in out
