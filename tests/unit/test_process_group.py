"""What torchrun tells its processes is told to workers: ranks without gaps, one address for all."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from elasticps.core.ids import JobName, NodeId
from elasticps.core.records import JobSpec
from elasticps.daemon.process_group import (
    fresh_identity,
    makes_own_group,
    port_is_free,
    port_of,
    torchrun_variables,
)
from elasticps.worker.join import forget_torchrun

A, B, C = NodeId("a"), NodeId("b"), NodeId("c")
ADDRESSES = {A: "http://10.0.0.1:7400", B: "http://10.0.0.2:7400", C: "https://[fd00::3]:7400"}


def spec(**more: Any) -> JobSpec:
    return JobSpec(name=JobName("job"), argv=("train.py",), cwd="/", **more)


def test_ranks_are_dense_over_the_nodes_and_all_meet_at_the_first() -> None:
    workers = {C: 1, A: 0, B: 3}
    found = [
        torchrun_variables(spec(), node, place, workers, ADDRESSES)
        for node in (B, C)
        for place in range(workers[node])
    ]
    keys = ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK")
    assert [tuple(each[key] for key in keys) for each in found] == [
        ("0", "0", "3", "0"),
        ("1", "1", "3", "0"),
        ("2", "2", "3", "0"),
        ("3", "0", "1", "1"),
    ]
    assert {each["WORLD_SIZE"] for each in found} == {"4"}
    assert {each["MASTER_ADDR"] for each in found} == {"10.0.0.2"}
    assert len({each["MASTER_PORT"] for each in found}) == 1


def test_jobs_meet_at_ports_of_their_own_below_those_given_to_anybody() -> None:
    ports = {
        int(torchrun_variables(spec(identity=f"{n:032x}"), A, 0, {A: 1}, ADDRESSES)["MASTER_PORT"])
        for n in range(50)
    }
    assert len(ports) > 40
    assert min(ports) >= 20_000
    assert max(ports) < 30_000


def test_an_address_may_be_one_of_ipv6() -> None:
    variables = torchrun_variables(spec(), C, 0, {C: 1}, ADDRESSES)
    assert variables["MASTER_ADDR"] == "fd00::3"


def test_a_worker_that_joins_forgets_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a framework that finds them would make a process group beside the job."""
    variables = torchrun_variables(spec(), A, 0, {A: 1}, ADDRESSES)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    forget_torchrun()
    assert not variables.keys() & os.environ.keys()
    forget_torchrun()


@pytest.mark.parametrize(
    ("strategy", "own"),
    [
        ("all-reduce:torchrun=true", True),
        ("all-reduce:publish_every=2,torchrun=true", True),
        ("all-reduce:torchrun=false", False),
        ("all-reduce", False),
        ("data-parallel", False),
        ("local-sgd:torchrun=true", False),
        (":", False),
    ],
)
def test_a_script_makes_its_own_group_where_the_strategy_says_so(
    strategy: str, *, own: bool
) -> None:
    assert makes_own_group(spec(strategy=strategy)) is own


def test_a_new_job_meets_where_no_other_job_does_and_nobody_listens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = iter(["one", "other", "free"])
    monkeypatch.setattr("secrets.token_hex", lambda _: next(drawn))
    with socket.socket() as listener:
        listener.bind(("", port_of("other")))
        listener.listen()
        assert not port_is_free(port_of("other"))
        assert fresh_identity(["one"]) == "free"
