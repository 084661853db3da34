"""Which servers hold which blocks: fair by weight, spread over failure domains, moving few bytes.

A plan is made in two acts of the same kind. First every block gets a primary, then its backups.
In each act blocks stay where they are; blocks without a home go to the neediest sites; and only
sites outside the bound (see ``place``) give or receive more. All arithmetic is in whole numbers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from math import gcd, isfinite

from elasticps.core.ids import NodeId, ServerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A shard server that may hold replicas.

    ``weight`` is its capacity relative to the other sites, with no unit: a site of weight 2 is
    meant to hold twice the bytes of a site of weight 1. ``zone`` names the failure domain of its
    node; an empty one makes the node a zone of its own. Raises ValueError on a bad weight.
    """

    server: ServerId
    node: NodeId
    weight: float = 1.0
    zone: str = ""

    def __post_init__(self) -> None:
        if not (isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"weight must be finite and above 0, not {self.weight} ({self.server})"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """A copy of ``size`` bytes to make; ``source`` is None where no server holds the block."""

    block: int
    source: ServerId | None
    target: ServerId
    size: int


def place(
    sizes: Sequence[int],
    sites: Sequence[Site],
    *,
    replicas: int = 1,
    current: Sequence[Sequence[ServerId]] | None = None,
) -> list[tuple[ServerId, ...]]:
    """For each block its servers, primary first: ``min(replicas, nodes)`` of them.

    ``sizes[i]`` is in bytes; ``current[i]`` names the servers that hold block i now, primary
    first, and may name servers that are gone. Raises ValueError naming the bad argument.

    - Each site leads less than one largest block more or less than its ideal share, which is
      ``total * weight / sum(weights)``: blocks of one size differ by at most one between equals.
    - Its replicas of all roles together are as near to their own ideal share, that is ``replicas``
      times the former, or less where its domain would need two replicas of a block.
      Only mixed sizes in few domains may cost up to ``replicas`` largest blocks.
    - No two replicas of a block share a node, nor a zone if there are ``replicas`` zones.
    - The first living holder leads. Roles change hands before bytes do, and nothing moves
      within the bound. With one replica, at most ``least_bytes`` move.
    """
    known = _check(sizes, sites, replicas, current)
    order = sorted(sites, key=lambda site: site.server)
    if not sizes or not order:
        return [() for _ in sizes]
    if not any(sizes):
        sizes = [1] * len(sizes)
    weights = _whole(order)
    domains = _domains(order, replicas)
    copies = min(replicas, len(set(domains)))
    homes = _survivors(known, order, domains)
    settled = {site for home in homes for site in home}
    fresh = [site not in settled for site in range(len(order))]

    shares, scale = _shares(sum(sizes), weights, [0] * len(order), 1)
    leading = _Leading(sizes, scale, shares, domains, fresh, homes)
    leading.level(copies, _promoted(known, order, homes))
    shares, scale = _shares(sum(sizes), weights, domains, copies)
    _Backing(sizes, scale, shares, domains, fresh, homes).level(copies)
    return [tuple(order[site].server for site in home) for home in homes]
