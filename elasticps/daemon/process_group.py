"""What ``torchrun`` tells the processes that it starts, told to workers too.

A worker's variables say where it stood when it started. They stay as they are while others join and
leave, so only a script whose workers are the same from the first to the last may build on them.
"""

from __future__ import annotations

import secrets
import socket
import zlib
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from elasticps.api.choice import parse_choice
from elasticps.core.ids import NodeId
from elasticps.core.records import JobSpec
from elasticps.errors import UsageError

ALL_REDUCE = "all-reduce"
FIRST_PORT, PORTS = 20_000, 10_000
"""Below those that systems give to whoever asks for any."""
IDENTITY_BYTES = 16
DRAWS = 100


def makes_own_group(spec: JobSpec) -> bool:
    """Is the script one for torchrun, which makes a process group of its workers and never joins?

    ``--strategy all-reduce:torchrun=true`` says so.
    """
    try:
        choice = parse_choice(spec.strategy, "strategy")
    except UsageError:  # its workers will say so
        return False
    return choice.name == ALL_REDUCE and choice.options.get("torchrun") is True


def fresh_identity(taken: Collection[str]) -> str:
    """A random identity for a new job, whose port no job of the identities ``taken`` has.

    The port is free on this machine too, where rank 0 may be; ``port_is_free`` is asked there.
    """
    ports = {port_of(identity) for identity in taken}
    identity = ""
    for _ in range(DRAWS):
        identity = secrets.token_hex(IDENTITY_BYTES)
        port = port_of(identity)
        if port not in ports and port_is_free(port):
            break
    return identity


def port_of(identity: str) -> int:
    """Where the workers of the job meet."""
    return FIRST_PORT + zlib.crc32(identity.encode()) % PORTS


def port_is_free(port: int) -> bool:
    """Can a process of this machine listen there, as torch's store does?"""
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family is socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        try:
            listener.bind(("", port))
            listener.listen()  # two may bind, and one alone listen
        except (OSError, OverflowError):
            return False
    return True


def taken_port(env: Mapping[str, str]) -> str:
    """Why rank 0 cannot listen where the others look for it; empty where it can."""
    port = env.get("MASTER_PORT", "")
    if env.get("RANK") != "0" or not port.isdecimal() or port_is_free(int(port)):
        return ""
    return (
        f"port {port} of this machine, where its process group is to meet (MASTER_PORT), is taken:"
        " submit the job again, which gives it another, or with a MASTER_PORT in its environment"
    )


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
    every node, and no other job of the cluster has it.
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
        "MASTER_PORT": str(port_of(spec.identity)),
    }
