"""What every placement must propose, for clusters of any size and in any trouble."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from random import Random

from elasticps.api.placement import Load, PlacedBlock, Placement, Proposal, Site, Situation
from elasticps.core.ids import BlockId, JobName, NodeId, ServerId
from elasticps.core.placement import place
from elasticps.core.proposal import checked
from elasticps.testing.kit import Case, ContractBroken, Subject, require

SEEDS = 40
QUESTIONS = 60
"""After so many in an unchanged cluster it must have come to rest."""
LARGE = (100, 5_000)
"""Servers, blocks."""
GIB = 1 << 30


def _situation(seed: int, servers: int, blocks: int) -> Situation:
    """A job at rest, or in the middle of a move; half of them have hot blocks."""
    random = Random(seed)  # noqa: S311 - a made-up cluster
    replicas = random.randint(1, 3)
    zones = random.choice((0, 2, 3))
    sites = tuple(
        Site(
            server=ServerId(f"n{number}/1"),
            node=NodeId(f"n{number}"),
            weight=random.choice((1.0, 1.0, 2.5)),
            zone=f"z{number % zones}" if zones else "",
        )
        for number in range(servers)
    )
    sizes = [random.choice((0, 1, 1 << 20, random.randint(1, 1 << 22))) for _ in range(blocks)]
    gone = ServerId("gone/1")
    before = [site.server for site in sites[: max(1, servers - 1)]] + [gone]
    current = [random.sample(before, min(replicas, len(before))) for _ in sizes]
    homes = place(sizes, sites, replicas=replicas, current=current)
    hot = {block for block in range(blocks) if seed % 2 and random.random() < 0.3}
    moving = random.random() < 0.2
    placed = []
    for number, (size, home, was) in enumerate(zip(sizes, homes, current, strict=True)):
        in_move = moving and len(was) == len(home) and home != tuple(was)
        load = Load(bytes_per_s=random.random() * GIB, apply_s_per_s=random.random() / 8)
        placed.append(_block(number, size, was if in_move else home, home, load, number in hot))
    return _with_server_loads(
        Situation(job=JobName("job"), replicas=replicas, sites=sites, blocks=tuple(placed))
    )


def _block(
    number: int, size: int, now: Sequence[ServerId], home: Sequence[ServerId], load: Load, hot: bool
) -> PlacedBlock:
    measured = Load(
        bytes_per_s=load.bytes_per_s if hot else 0.0,
        apply_s_per_s=load.apply_s_per_s if hot else 0.0,
        measured_s=60.0,
    )
    return PlacedBlock(
        block=BlockId(number),
        size=size,
        primary=now[0],
        in_sync=tuple(now[1:]),
        learners=tuple(server for server in home if server not in now),
        destined=tuple(home),
        load=measured,
    )


def _with_server_loads(situation: Situation) -> Situation:
    busy: dict[ServerId, tuple[float, float]] = {}
    for block in situation.blocks:
        sent, applied = busy.get(block.destined[0], (0.0, 0.0))
        busy[block.destined[0]] = sent + block.load.bytes_per_s, applied
        for server in block.destined:
            sent, applied = busy.get(server, (0.0, 0.0))
            busy[server] = sent, applied + block.load.apply_s_per_s
    known = {site.server for site in situation.sites}
    loads = {
        server: Load(bytes_per_s=sent, apply_s_per_s=applied, measured_s=60.0)
        for server, (sent, applied) in busy.items()
        if server in known
    }
    return Situation(
        job=situation.job,
        replicas=situation.replicas,
        sites=situation.sites,
        blocks=situation.blocks,
        server_loads=loads,
    )


def _situations() -> Iterator[Situation]:
    yield _situation(0, 1, 0)
    yield _situation(1, 1, 3)
    for seed in range(SEEDS):
        yield _situation(seed, 1 + seed % 7, 1 + seed * 7 % 40)


def _proposed(placement: Placement, situation: Situation) -> Mapping[BlockId, Sequence[ServerId]]:
    """What it proposes, once that is sound. Raises ContractBroken."""
    proposal = placement.propose(situation)
    try:
        return checked(proposal, situation).proposal
    except (ValueError, TypeError, AttributeError) as error:
        raise ContractBroken(f"{error}; asked {_short(situation)}") from None


def _short(situation: Situation) -> str:
    return (
        f"for {len(situation.blocks)} blocks, {situation.replicas} replicas, on "
        f"{len(situation.sites)} servers"
    )


def _moved(situation: Situation, proposal: Proposal) -> Situation:
    """The situation once the moves are made, under way before or proposed now."""
    blocks = [
        PlacedBlock(
            block=block.block,
            size=block.size,
            primary=home[0],
            in_sync=tuple(home[1:]),
            destined=tuple(home),
            load=block.load,
        )
        for block in situation.blocks
        for home in (proposal.get(block.block, block.destined),)
    ]
    return _with_server_loads(
        Situation(
            job=situation.job,
            replicas=situation.replicas,
            sites=situation.sites,
            blocks=tuple(blocks),
        )
    )


def every_proposal_is_sound(subject: Subject) -> None:
    """As many replicas as are wanted, on servers that may hold them, in domains of their own."""
    for situation in _situations():
        _proposed(subject.load(), situation)


def blocks_come_to_rest(subject: Subject) -> None:
    """Where nothing changes but what it moves, the moves end."""
    for situation in _situations():
        here = situation
        for _ in range(QUESTIONS):
            proposal = _proposed(subject.load(), here)
            after = _moved(here, proposal)
            if after == here:
                break
            here = after
        else:
            raise ContractBroken(f"still moves after {QUESTIONS} questions, {_short(situation)}")


def proposing_is_fast(subject: Subject) -> str:
    """Not held to a figure; the leader gives a placement seconds."""
    situation = _situation(1, *LARGE)
    began = time.perf_counter()
    proposal = _proposed(subject.load(), situation)
    took = time.perf_counter() - began
    require(isinstance(proposal, Mapping), "no proposal")
    return f"{took:.2f} s for {LARGE[1]} blocks on {LARGE[0]} servers"


CASES = (
    Case(check=every_proposal_is_sound, quick=True),
    Case(check=blocks_come_to_rest, quick=True),
    Case(check=proposing_is_fast),
)
