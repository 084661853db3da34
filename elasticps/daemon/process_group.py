"""What ``torchrun`` tells the processes that it starts, told to workers too.

A worker's variables say where it stood when it started. They stay as they are while others join and
leave, so only a script whose workers are the same from the first to the last may build on them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from urllib.parse import urlsplit

from elasticps.api.choice import parse_choice
from elasticps.core.ids import NodeId
from elasticps.core.records import JobSpec
from elasticps.errors import UsageError

ALL_REDUCE = "all-reduce"
FIRST_PORT, PORTS = 20_000, 10_000
"""Below those that systems give to whoever asks for any."""


def makes_own_group(spec: JobSpec) -> bool:
    """Is the script one for torchrun, which makes a process group of its workers and never joins?

    ``--strategy all-reduce:torchrun=true`` says so.
    """
    try:
        choice = parse_choice(spec.strategy, "strategy")
    except UsageError:  # its workers will say so
        return False
    return choice.name == ALL_REDUCE and choice.options.get("torchrun") is True


def torchrun_variables(
    spec: JobSpec,
    node: NodeId,
    place: int,
    workers: Mapping[NodeId, int],
    addresses: Mapping[NodeId, str],
) -> dict[str, str]:
    """The variables of the worker at ``place``, from 0, among those on ``node``.

    ``workers`` are how many each node is to run, ``addresses`` the nodes' URLs. Ranks are dense
    and in the order of the nodes' names; rank 0 is on the first of them. The port is the same at
    every node and another for every job.
    """
    nodes = sorted(name for name, count in workers.items() if count)
    before = nodes[: nodes.index(node)] if node in nodes else []
    first = urlsplit(addresses.get(nodes[0], "")).hostname if nodes else None
    return {
        "RANK": str(sum(workers[name] for name in before) + place),
        "WORLD_SIZE": str(sum(workers.values())),
        "LOCAL_RANK": str(place),
        "LOCAL_WORLD_SIZE": str(workers.get(node, 1)),
        "GROUP_RANK": str(len(before)),
        "MASTER_ADDR": first or "127.0.0.1",
        "MASTER_PORT": str(FIRST_PORT + zlib.crc32(spec.identity.encode()) % PORTS),
    }
