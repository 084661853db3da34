"""Affinity: on whose node a block's primary is best, by the wish of the workers that use the block.

A wish is the last of placement's rules. It never adds or takes a replica, it names only who leads;
a server heeds wishes up to its fair share of the bytes of all replicas; the rest of these bytes is
made fair around it. A wish for a node that may hold nothing counts as none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from elasticps.core.ids import LEDGER, BlockId, NodeId

Span = tuple[BlockId, BlockId]
"""Blocks from the first to before the second."""

MAX_SPANS = 1024
"""Of one node for one job: what is written into etcd stays small. A stage's blocks are one span."""

Affinities = Mapping[int, Collection[NodeId]]
"""For a block, the nodes that wish to lead it. What nobody wishes for is not in it."""


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """The same blocks in order and in as few pieces as can be, the first ``MAX_SPANS`` of these."""
    found: list[Span] = []
    for first, stop in sorted(spans):
        if found and first <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], stop))
        elif first < stop:
            found.append((first, stop))
    return tuple(found[:MAX_SPANS])


def affinities(wishes: Mapping[NodeId, Sequence[Span]], count: int) -> dict[int, list[NodeId]]:
    """Who wishes for which of a job's ``count`` blocks; for the ledger nobody may."""
    found: dict[int, list[NodeId]] = {}
    for node in sorted(wishes):
        for first, stop in wishes[node]:
            for block in range(max(first, LEDGER + 1), min(stop, count)):
                nodes = found.setdefault(block, [])
                if node not in nodes:
                    nodes.append(node)
    return found


def heeded(
    sizes: Sequence[int],
    homes: Sequence[Sequence[int]],
    nodes: Sequence[NodeId],
    room: Sequence[int],
    wishes: Affinities,
    pinned: Collection[int] = (),
) -> dict[int, int]:
    """The site that is to lead each block whose wish is heeded, ``pinned`` ones as they are.

    ``homes[block]`` are the sites that hold it, the primary first; ``nodes[site]`` is a site's
    node, ``room[site]`` the bytes that it may lead by wishes. Who leads as is wished goes on doing
    so: the same wishes ask for no second move. A holder goes before another, then who has room.
    """
    left = list(room)
    chosen: dict[int, int] = {}
    able = {
        block: [site for site, node in enumerate(nodes) if node in wishes[block]]
        for block in sorted(wishes)
    }
    for block, sites in able.items():
        home = homes[block]
        if home and home[0] in sites and (block in pinned or sizes[block] <= left[home[0]]):
            chosen[block] = home[0]
            left[home[0]] -= sizes[block]
    for block, sites in able.items():
        fit = [site for site in sites if sizes[block] <= left[site]]
        if fit and block not in chosen and block not in pinned:
            holders = homes[block]
            site = min(fit, key=lambda site: (site not in holders, -left[site], site))
            chosen[block] = site
            left[site] -= sizes[block]
    return chosen
