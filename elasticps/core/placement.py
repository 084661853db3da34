"""Which servers hold which blocks: fair by weight, spread over failure domains, moving few bytes.

A plan is made in two acts of the same kind. First every block gets a primary, then its backups.
In each act blocks stay where they are; blocks without a home go to the neediest sites; and only
where a site is out of bound (see ``place``) does more move. All arithmetic is in whole numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import gcd, isfinite, lcm
from types import MappingProxyType

from elasticps.core.affinity import Affinities, heeded
from elasticps.core.ids import NodeId, ServerId
from elasticps.core.levelling import Level, by_fit

NO_WISHES: Affinities = MappingProxyType({})


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How far replicas of one block can be spread: ``copies`` of them, on as many domains.

    ``domains`` has each server's: its zone where there are zones enough, else its node.
    """

    copies: int
    domains: Mapping[ServerId, int]


def spread(sites: Sequence[Site], replicas: int) -> Spread:
    domains = _domains(sites, replicas)
    return Spread(
        copies=min(replicas, len(set(domains))),
        domains={site.server: domain for site, domain in zip(sites, domains, strict=True)},
    )


def place(
    sizes: Sequence[int],
    sites: Sequence[Site],
    *,
    replicas: int = 1,
    current: Sequence[Sequence[ServerId]] | None = None,
    pinned: Collection[int] = (),
    wishes: Affinities = NO_WISHES,
) -> list[tuple[ServerId, ...]]:
    """For each block its servers, primary first: ``min(replicas, nodes)`` of them.

    ``sizes[i]`` is in bytes; ``current[i]`` names the servers that hold block i now, primary
    first, and may name servers that are gone. Blocks in ``pinned`` stay where they are, as far as
    that is possible at all. Raises ValueError naming the bad argument.

    - A site's ideal share of primaries is ``total * weight / sum(weights)``. It leads less than
      one largest block more or less: blocks of one size differ by at most one between equals.
    - Its ideal share of all replicas is ``copies`` times that; a domain too heavy for this holds
      each block once, and the others share the rest. Sites of equal weight are less than one
      largest block from it; unequal weights over few domains may cost some blocks more.
    - No two replicas of a block share a node, nor a zone if there are ``replicas`` zones.
    - The first living holder leads, unless the living can't be in balance so. What is in balance
      stays; roles change hands before bytes move; with one replica at most ``least_bytes`` move.
    - A block that is wished for is led there, wherever it was, as long as what a site leads by
      wishes is less than one largest block above its share of all replicas (``core.affinity``).
      Primaries may be uneven for that; all replicas together are fair as above.
    """
    order, known = _checked(sizes, sites, replicas, current)
    if not sizes or not order:
        return [() for _ in sizes]
    sizes = sizes if any(sizes) else [1] * len(sizes)
    domains = _domains(order, replicas)
    copies = min(replicas, len(set(domains)))
    homes = _survivors(known, order, domains)
    promoted = [
        bool(home) and order[home[0]].server != was[0]
        for home, was in zip(homes, known, strict=True)
    ]
    held = {site for home in homes for site in home}
    fresh = [site not in held for site in range(len(order))]

    weights = _whole([site.weight for site in order])
    of_all, scale_of_all = _shares(sum(sizes), weights, domains, copies)
    fixed = pinned
    if wishes:
        room = [share // scale_of_all + max(sizes) - 1 for share in of_all]
        led = heeded(sizes, homes, [site.node for site in order], room, wishes, pinned)
        for block in led.keys() - set(pinned):
            homes[block] = _led_by(led[block], homes[block], domains)
        fixed = {*pinned, *led}

    shares, scale = _shares(sum(sizes), weights, [0] * len(order), 1)
    scaled = [size * scale for size in sizes]
    primaries = _Primaries(scaled, shares, domains, fresh, homes, fixed)
    primaries.plan(copies, promoted)
    scaled = [size * scale_of_all for size in sizes]
    backups = _Backups(scaled, of_all, domains, fresh, homes, pinned)
    backups.plan(copies)
    servers = [site.server for site in order]
    return [tuple([servers[site] for site in home]) for home in homes]


def moves(
    sizes: Sequence[int],
    current: Sequence[Sequence[ServerId]],
    target: Sequence[Sequence[ServerId]],
) -> list[Move]:
    """The copies that turn ``current`` into ``target``, by block; a change of role costs none.

    The source is a holder that stays, else the first holder. Leave the dead out of ``current``
    to have only living sources. Raises ValueError if the three differ in length.
    """
    found = []
    for block, (size, was, will) in enumerate(zip(sizes, current, target, strict=True)):
        source = next((server for server in was if server in will), was[0] if was else None)
        found += [
            Move(block=block, source=source, target=server, size=size)
            for server in will
            if server not in was
        ]
    return found


def least_bytes(
    sizes: Sequence[int],
    sites: Sequence[Site],
    current: Sequence[Sequence[ServerId]],
    replicas: int = 1,
) -> int:
    """Bytes that must move for every site to hold its exact ideal share, if blocks could be cut.

    ``sum(max(0, share - held))`` over the sites, rounded down: of all replicas, as far as they may
    stay. That is all bytes on servers that are gone, since they are no site's, and what receivers
    lack beyond them. With one replica ``place`` moves no more, and less by what its bound leaves;
    with several it may move a little more, to have the primaries fair as well.
    """
    order, known = _checked(sizes, sites, replicas, current)
    if not order:
        return 0
    domains = _domains(order, replicas)
    copies = min(replicas, len(set(domains)))
    shares = domains if copies > 1 else [0] * len(order)
    lack, scale = _shares(sum(sizes), _whole([site.weight for site in order]), shares, copies)
    for size, home in zip(sizes, _survivors(known, order, domains), strict=True):
        for site in home[:copies]:
            lack[site] -= size * scale
    return sum(max(0, units) for units in lack) // scale


class _Primaries(Level):
    """Who leads. Any site may, and a backup that takes over moves no bytes."""

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[int],
        domains: Sequence[int],
        fresh: Sequence[bool],
        homes: list[list[int]],
        pinned: Collection[int],
    ) -> None:
        super().__init__(sizes, shares, [0] * len(shares), fresh, homes, pinned)
        self.domains = domains

    def barred(self, block: int, leaving: int | None = None) -> Collection[int]:
        return ()

    def rehome(self, block: int, donor: int, receiver: int) -> None:
        """The old primary stays as the first backup, where it may."""
        self.homes[block] = _led_by(receiver, self.homes[block], self.domains)

    def plan(self, copies: int, promoted: Sequence[bool]) -> None:
        """Roles first, then blocks that need a copy anyway, then others, promoted ones last."""
        for block, home in enumerate(self.homes):
            for site in home[:1]:
                self.load(block, site)
        self.settle(1)
        self._hand_over()
        cost = [
            2 if promoted[block] else int(len(home) >= copies)
            for block, home in enumerate(self.homes)
        ]
        for outside, act in ((self.rich, self.relieve), (self.poor, self.fill)):
            for most in sorted(set(cost)):
                if outside():
                    allowed = [block for block, each in enumerate(cost) if each <= most]
                    act(self.lots((block, self.homes[block][:1]) for block in allowed))

    def _hand_over(self) -> None:
        """Let backups lead instead of the rich, and the poor instead of their primaries."""
        if not (self.rich() or self.poor()) or all(len(home) < 2 for home in self.homes):
            return
        leading = self.lots((block, home[:1]) for block, home in enumerate(self.homes))
        backing = self.lots((block, home[1:]) for block, home in enumerate(self.homes))
        for donor in self.rich():
            for _, block in by_fit(leading[donor], self.over[donor] - self.bound + 1):
                backups = self.homes[block][1:]
                heir = min(backups, key=lambda site: self.over[site], default=donor)
                if self.over[donor] >= self.bound and self.over[heir] < 0:
                    self.shift(block, donor, heir)
        for heir in self.poor():
            for _, block in by_fit(backing[heir], 1 - self.bound - self.over[heir]):
                donor = self.homes[block][0]
                if self.over[heir] <= -self.bound and self.over[donor] > 0:
                    self.shift(block, donor, heir)


class _Backups(Level):
    """Who holds the other replicas, so that those of all roles together are fair."""

    def barred(self, block: int, leaving: int | None = None) -> Collection[int]:
        return [self.groups[site] for site in self.homes[block] if site != leaving]

    def turn(self, block: int) -> int:
        """No order that primaries follow too: the backups of one site's blocks are on many."""
        mixed = block
        for _ in range(2):
            mixed = (mixed ^ mixed >> 16) * 0x45D9F3B & 0xFFFFFFFF
        return mixed

    def rehome(self, block: int, donor: int, receiver: int) -> None:
        home = self.homes[block]
        home[home.index(donor)] = receiver

    def plan(self, copies: int) -> None:
        if copies == 1 and all(len(home) == 1 for home in self.homes):
            return
        for block, home in enumerate(self.homes):
            for site in home:
                self.load(block, site)
        self._drop(copies)
        self.settle(copies)
        if self.rich() or self.poor():
            self.even(self.lots((block, home[1:]) for block, home in enumerate(self.homes)))

    def _drop(self, copies: int) -> None:
        """Let go of the backups beyond ``copies``, those on the fullest sites."""
        for block, home in enumerate(self.homes):
            while len(home) > copies:
                site = max(home[1:], key=lambda site: (self.over[site], site))
                home.remove(site)
                self.over[site] -= self.sizes[block]


def _led_by(leader: int, home: Sequence[int], domains: Sequence[int]) -> list[int]:
    """The leader, and of the others who share no domain with it."""
    return [leader, *(site for site in home if domains[site] != domains[leader])]


def _shares(
    total: int, weights: Sequence[int], domains: Sequence[int], copies: int
) -> tuple[list[int], int]:
    """Each site's ideal share of ``copies * total`` bytes, and the number of units in a byte.

    By weight, but a domain holds no block twice: the heaviest get ``total`` where their weight
    would ask for more, and the others share the rest.
    """
    heft: dict[int, int] = {}
    for weight, domain in zip(weights, domains, strict=True):
        heft[domain] = heft.get(domain, 0) + weight
    rest = sum(weights)
    full: set[int] = set()
    for domain in sorted(heft, key=lambda domain: -heft[domain]):
        if (copies - len(full)) * heft[domain] <= rest:
            break
        full.add(domain)
        rest -= heft[domain]
    scale = lcm(rest, *(heft[domain] for domain in full))
    per_weight = {
        domain: total * scale // heft[domain]
        if domain in full
        else (copies - len(full)) * total * scale // rest
        for domain in heft
    }
    shares = [weight * per_weight[d] for weight, d in zip(weights, domains, strict=True)]
    return shares, scale


def _whole(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the same proportions, exactly."""
    ratios = [float(weight).as_integer_ratio() for weight in weights]
    common = max(bottom for _, bottom in ratios)
    whole = [top * (common // bottom) for top, bottom in ratios]
    divisor = gcd(*whole)
    return [weight // divisor for weight in whole]


def _domains(order: Sequence[Site], replicas: int) -> list[int]:
    """A number for each site's zone if there are enough zones, else for its node."""
    zones = [(site.zone, "" if site.zone else site.node) for site in order]
    nodes = [("", site.node) for site in order]
    labels = zones if len(set(zones)) >= replicas else nodes
    number: dict[tuple[str, str], int] = {}
    return [number.setdefault(label, len(number)) for label in labels]


def _survivors(
    current: Sequence[Sequence[ServerId]], order: Sequence[Site], domains: Sequence[int]
) -> list[list[int]]:
    """Each block's sites that may keep it, in order, one for a domain."""
    number = {site.server: index for index, site in enumerate(order)}
    homes = []
    for servers in current:
        home: dict[int, int] = {}
        for server in servers:
            if (site := number.get(server)) is not None:
                home.setdefault(domains[site], site)
        homes.append(list(home.values()))
    return homes


def _checked(
    sizes: Sequence[int],
    sites: Sequence[Site],
    replicas: int,
    current: Sequence[Sequence[ServerId]] | None,
) -> tuple[list[Site], Sequence[Sequence[ServerId]]]:
    """The sites in order and where blocks are; raises ValueError naming the bad argument."""
    if replicas < 1:
        raise ValueError(f"replicas must be at least 1, not {replicas}")
    if any(size < 0 for size in sizes):
        raise ValueError(f"sizes must be at least 0, not {min(sizes)}")
    if current is not None and len(current) != len(sizes):
        raise ValueError(f"current has {len(current)} blocks, sizes has {len(sizes)}")
    order = sorted(sites, key=lambda site: site.server)
    for one, other in pairwise(order):
        if one.server == other.server:
            raise ValueError(f"sites name the server {one.server} twice")
    zones: dict[NodeId, str] = {}
    for site in order:
        if zones.setdefault(site.node, site.zone) != site.zone:
            raise ValueError(f"sites put node {site.node} in two zones")
    return order, [()] * len(sizes) if current is None else current
