"""What a job's placement is told, what it proposes, and what the core makes of that.

A proposal is a wish. It becomes plan only where it is sound, and never undoes a move under way:
copies that are missing, and servers that may hold nothing any more, are the core's own concern.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from elasticps.core.affinity import Affinities
from elasticps.core.ids import BlockId, JobName, NodeId, ServerId
from elasticps.core.placement import NO_WISHES, Site, Spread, place, spread
from elasticps.core.plan import Entry
from elasticps.core.planner import destinations

Proposal = Mapping[BlockId, Sequence[ServerId]]
"""Who is to hold a block, the primary first. Blocks that are not named stay where they are."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured over some seconds: bytes pushed and pulled, seconds spent on applying.

    ``measured_s`` says for how long: 0 where nothing is known.
    """

    bytes_per_s: float = 0.0
    apply_s_per_s: float = 0.0
    measured_s: float = 0.0


class PlacedBlock(msgspec.Struct, frozen=True, kw_only=True):
    """One block of ``size`` bytes: its plan entry, where it will be, and what its primary measures.

    ``destined`` are its servers once the move under way is made, the primary first; block 0 is the
    job's ledger. ``wished_by``: the nodes whose workers use it and wish it led there.
    """

    block: BlockId
    size: int
    primary: ServerId
    in_sync: tuple[ServerId, ...] = ()
    learners: tuple[ServerId, ...] = ()
    destined: tuple[ServerId, ...] = ()
    load: Load = Load()
    wished_by: tuple[NodeId, ...] = ()


class Situation(msgspec.Struct, frozen=True, kw_only=True):
    """All that a placement decides from: one job, and the servers that may hold its blocks.

    ``server_loads`` has what a server does for all jobs together; a server that has told nothing
    is not in it.
    """

    job: JobName
    replicas: int
    sites: tuple[Site, ...]
    blocks: tuple[PlacedBlock, ...]
    server_loads: dict[ServerId, Load] = {}


class Placed(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's placement said last. ``refusal``: why it is not heard; balanced is meanwhile."""

    proposal: dict[BlockId, tuple[ServerId, ...]] = {}
    refusal: str = ""


def situation_of(
    job: JobName,
    sizes: Sequence[int],
    entries: Sequence[Entry],
    sites: Sequence[Site],
    alive: Collection[ServerId],
    replicas: int,
    loads: Mapping[tuple[ServerId, BlockId], Load],
    server_loads: Mapping[ServerId, Load],
    wishes: Affinities = NO_WISHES,
) -> Situation:
    """``loads`` are by primary and block: what another server measured of a block is not told."""
    homes = destinations(entries, sites, alive, replicas)
    known = {site.server for site in sites}
    return Situation(
        job=job,
        replicas=replicas,
        sites=tuple(sites),
        blocks=tuple(
            PlacedBlock(
                block=entry.block,
                size=size,
                primary=entry.primary,
                in_sync=entry.in_sync,
                learners=entry.learners,
                destined=home,
                load=loads.get((entry.primary, entry.block), Load()),
                wished_by=tuple(wishes.get(index, ())),
            )
            for index, (size, entry, home) in enumerate(zip(sizes, entries, homes, strict=True))
        ),
        server_loads={server: load for server, load in server_loads.items() if server in known},
    )


def checked(proposal: Proposal, situation: Situation) -> Placed:
    """Raises ValueError, naming block and fault, where the core could not make a plan of it."""
    room = spread(situation.sites, situation.replicas)
    blocks = {each.block for each in situation.blocks}
    for block, servers in proposal.items():
        if block not in blocks:
            raise ValueError(f"block {block!r} is not the job's")
        for server in servers:
            if server not in room.domains:
                raise ValueError(f"block {block}: {server!r} is no server that may hold it")
        if len(servers) != room.copies:
            raise ValueError(
                f"block {block}: {len(servers)} replicas where {room.copies} are wanted"
            )
        if not _is_whole(servers, room):
            raise ValueError(f"block {block}: two replicas share a node or a zone")
    return Placed(proposal={block: tuple(servers) for block, servers in proposal.items()})


def wanted(
    proposal: Proposal,
    sizes: Sequence[int],
    entries: Sequence[Entry],
    sites: Sequence[Site],
    alive: Collection[ServerId],
    replicas: int,
) -> list[tuple[ServerId, ...]]:
    """Where each block should be: as proposed where that can still be, else where it is.

    Blocks that lack a replica, or have one on a server that may hold none, get theirs as in
    ``balanced``; the others stay.
    """
    homes = destinations(entries, sites, alive, replicas)
    if not sites:
        return homes
    room = spread(sites, replicas)
    fixed = set()
    for index, entry in enumerate(entries):
        moving = any(learner in room.domains for learner in entry.learners)
        proposed = tuple(proposal.get(entry.block, ()))
        if not moving and _is_whole(proposed, room):
            homes[index] = proposed
        if moving or _is_whole(homes[index], room):
            fixed.add(index)
    return place(sizes, sites, replicas=replicas, current=homes, pinned=fixed)


def _is_whole(servers: Sequence[ServerId], room: Spread) -> bool:
    domains = {room.domains[server] for server in servers if server in room.domains}
    return len(domains) == len(servers) == room.copies
