"""How many shard servers a machine's cores are enough for, and where they run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from elasticps.daemon.cores import (
    MAX_SERVERS,
    MAX_THREADS,
    cores_text,
    numa_nodes,
    parse_cores,
    pinned,
    servers_for,
    threads_for,
)

USABLE = frozenset(os.sched_getaffinity(0))


def kernel_that_tells(directory: Path, *cpulists: str) -> Path:
    """A fake of what the kernel tells of NUMA nodes, which this machine may have one of only."""
    for number, cpulist in enumerate(cpulists):
        (directory / f"node{number}").mkdir()
        (directory / f"node{number}" / "cpulist").write_text(f"{cpulist}\n")
    return directory


def cores(first: int, count: int) -> frozenset[int]:
    return frozenset(range(first, first + count))


def test_numa_nodes_are_those_with_cores_that_this_process_may_use(tmp_path: Path) -> None:
    first, *others = sorted(USABLE)
    rest = ",".join(map(str, others))
    root = kernel_that_tells(tmp_path, str(first), "", "100000-100007", rest)
    assert numa_nodes(root) == [frozenset({first}), frozenset(others)] if others else [USABLE]


def test_machine_that_tells_of_no_numa_nodes_is_one(tmp_path: Path) -> None:
    assert numa_nodes(tmp_path) == [USABLE]


@pytest.mark.parametrize(
    ("nodes", "servers"),
    [
        ([cores(0, 1)], 1),
        ([cores(0, 15)], 1),
        ([cores(0, 16)], 2),
        ([cores(0, 4), cores(4, 4)], 2),
        ([cores(0, 32), cores(32, 32)], 8),
        ([cores(0, 1000)], MAX_SERVERS),
    ],
)
def test_auto_is_a_server_for_each_numa_node_and_for_each_eight_cores(
    nodes: list[frozenset[int]], servers: int
) -> None:
    assert servers_for(nodes) == servers


@pytest.mark.parametrize(
    ("servers", "nodes", "threads"),
    [
        (1, [cores(0, 1)], 1),
        (1, [cores(0, 2)], 2),
        (1, [cores(0, 4)], 4),
        (2, [cores(0, 4)], 2),
        (3, [cores(0, 4)], 1),
        (5, [cores(0, 4)], 1),
        (2, [cores(0, 8), cores(8, 8)], 4),
        (1, [cores(0, 64)], MAX_THREADS),
    ],
)
def test_a_server_computes_with_its_share_of_the_cores_up_to_a_few(
    servers: int, nodes: list[frozenset[int]], threads: int
) -> None:
    assert threads_for(servers, nodes) == threads


def test_servers_are_dealt_to_the_numa_nodes_in_turn() -> None:
    near, far = cores(0, 4), cores(4, 4)
    assert pinned(3, [near, far]) == [near, far, near]
    assert pinned(1, [near, far]) == [None]
    assert pinned(2, [near]) == [None, None]


@pytest.mark.parametrize("text", ["0", "0-3", "0-3,8,10-11", "0-3,8\n", ""])
def test_what_the_kernel_writes_of_cores_is_read(text: str) -> None:
    assert parse_cores(cores_text(parse_cores(text))) == parse_cores(text)
    assert (8 in parse_cores(text)) == ("8" in text)
