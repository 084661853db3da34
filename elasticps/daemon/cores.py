"""The machine's cores: how many shard servers they are enough for, and which server runs where."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

NUMA = Path("/sys/devices/system/node")
CORES_PER_SERVER = 8
"""A shard server computes on one core and its workers on the others: with more of them it is what
they wait for."""
MAX_SERVERS = 16
MAX_THREADS = 4
"""Of a shard server, unless it is told otherwise: more of them wait for memory, and for Python."""

Cores = frozenset[int]


def numa_nodes(root: Path = NUMA) -> list[Cores]:
    """The cores of each NUMA node, of those that this process may use; none where it may use none.

    A machine that does not tell of NUMA nodes counts as one.
    """
    usable = frozenset(os.sched_getaffinity(0))
    told = sorted(root.glob("node[0-9]*/cpulist"), key=lambda path: int(path.parent.name[4:]))
    nodes = [parse_cores(path.read_text()) & usable for path in told]
    return [cores for cores in nodes if cores] or [usable]


def servers_for(nodes: Collection[Cores]) -> int:
    """How many shard servers ``auto`` means on a machine of these NUMA nodes: one each at least."""
    cores = sum(map(len, nodes))
    return min(MAX_SERVERS, max(len(nodes), cores // CORES_PER_SERVER))


def threads_for(servers: int, nodes: Collection[Cores]) -> int:
    """How many threads each of ``servers`` computes with: its share of the cores, up to a few.
    Workers that are in a round together wait while it does."""
    return max(1, min(MAX_THREADS, sum(map(len, nodes)) // servers))


def pinned(servers: int, nodes: list[Cores]) -> list[Cores | None]:
    """The cores of each of ``servers``, dealt to the NUMA nodes in turn; None: any.

    One server alone is not pinned, nor is any where there is one NUMA node: then memory is as near
    from each core, and the kernel knows better which are idle.
    """
    if servers == 1 or len(nodes) == 1:
        return [None] * servers
    return [nodes[number % len(nodes)] for number in range(servers)]


def parse_cores(text: str) -> Cores:
    """The cores of the kernel's "0-3,8-11". Raises ValueError for anything else."""
    cores: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        cores.update(range(int(first), int(last or first) + 1))
    return frozenset(cores)


def cores_text(cores: Cores) -> str:
    """As ``parse_cores`` reads it."""
    return ",".join(map(str, sorted(cores)))
