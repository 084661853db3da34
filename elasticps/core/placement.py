"""Which servers hold which blocks: fair by weight, spread over failure domains, moving few bytes.

A plan is made in two acts of the same kind. First every block gets a primary, then its backups.
In each act blocks stay where they are; blocks without a home go to the neediest sites; and only
sites outside the bound (see ``place``) give or receive more. All arithmetic is in whole numbers.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from itertools import pairwise
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
    order, known = _checked(sizes, sites, replicas, current)
    if not sizes or not order:
        return [() for _ in sizes]
    sizes = sizes if any(sizes) else [1] * len(sizes)
    weights = _whole([site.weight for site in order])
    domains = _domains(order, replicas)
    copies = min(replicas, len(set(domains)))
    homes = _survivors(known, order, domains)
    held = {site for home in homes for site in home}
    fresh = [site not in held for site in range(len(order))]

    shares, scale = _shares(sum(sizes), weights, [0] * len(order), 1)
    _Primaries([size * scale for size in sizes], shares, fresh, domains, homes).plan(
        copies,
        promoted=[
            bool(home) and order[home[0]].server != was[0]
            for home, was in zip(homes, known, strict=True)
        ],
    )
    shares, scale = _shares(sum(sizes), weights, domains, copies)
    _Backups([size * scale for size in sizes], shares, fresh, domains, homes).plan(copies)
    return [tuple(order[site].server for site in home) for home in homes]


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
    sizes: Sequence[int], sites: Sequence[Site], current: Sequence[Sequence[ServerId]]
) -> int:
    """Bytes that must move for every site to hold exactly its ideal share, if blocks could be cut.

    With one replica, the first living holder's: the sum over sites of max(0, share - held),
    rounded down. It counts all bytes on servers that are gone, since they are no site's, and
    beyond those what the poor lack. ``place`` moves no more, and less by what its bound leaves.
    """
    order, known = _checked(sizes, sites, 1, current)
    if not order:
        return 0
    shares, scale = _shares(
        sum(sizes), _whole([site.weight for site in order]), [0] * len(order), 1
    )
    lack = shares
    for size, home in zip(sizes, _survivors(known, order, [0] * len(order)), strict=True):
        for site in home:
            lack[site] -= size * scale
    return sum(max(0, units) for units in lack) // scale


Need = tuple[bool, bool, int, int, int]
Lots = list[list[tuple[int, int]]]
"""For each site (size, block) of the replicas it may give, the smallest first."""


class _Level:
    """Sites on the scales: deals out replicas until each is within one block of its share.

    ``over[site]`` is what a site holds above its ideal share, in the units of ``sizes``. The bound
    is exclusive, so that blocks of one size differ by at most one. Where something is lacking,
    receivers end at or below their share; otherwise donors end at or above it: either way no more
    moves than if blocks could be cut.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[int],
        fresh: Sequence[bool],
        domains: Sequence[int],
        homes: list[list[int]],
    ) -> None:
        self.sizes = sizes
        self.bound = max(sizes)
        self.over = [-share for share in shares]
        self.count = [0] * len(shares)
        self.fresh = fresh
        self.domains = domains
        self.homes = homes

    def groups(self) -> Sequence[int]:
        """For each site a number of which ``barred`` may bar all sites that share it."""
        return self.domains

    def barred(self, block: int, leaving: int | None = None) -> Collection[int]:
        """Groups that a replica of ``block`` may not join, ``leaving`` being the site it leaves."""
        others = (site for site in self.homes[block] if site != leaving)
        return [self.domains[site] for site in others]

    def rehome(self, block: int, donor: int, receiver: int) -> None:
        home = self.homes[block]
        home[home.index(donor)] = receiver

    def need(self, site: int) -> Need:
        """Sorts first who must receive, then newcomers with room, then by what they lack.

        Ties go round, so that the backups of one site's blocks are on many.
        """
        over = self.over[site]
        turn = (site + self.count[site]) % len(self.over)
        return (over > -self.bound, over >= 0 or not self.fresh[site], over, turn, site)

    def load(self, block: int, site: int) -> None:
        self.over[site] += self.sizes[block]
        self.count[site] += 1

    def shift(self, block: int, donor: int, receiver: int) -> None:
        self.over[donor] -= self.sizes[block]
        self.load(block, receiver)
        self.rehome(block, donor, receiver)

    def rich(self) -> list[int]:
        return [site for site, over in enumerate(self.over) if over >= self.bound]

    def poor(self) -> list[int]:
        poor = [site for site, over in enumerate(self.over) if over <= -self.bound]
        return sorted(poor, key=lambda site: self.over[site])

    def settle(self, copies: int) -> None:
        """Give every block that lacks replicas to the neediest, the largest first."""
        lacking = [block for block, home in enumerate(self.homes) if len(home) < copies]
        needy = _Needy(self) if lacking else None
        for block in sorted(lacking, key=lambda block: -self.sizes[block]):
            home = self.homes[block]
            while needy and len(home) < copies:
                site = needy.first(self.barred(block))
                assert site is not None
                home.append(site)
                self.load(block, site)

    def even(self, lots: Lots) -> None:
        """Move what ``lots`` allow until no site is out of bound or no move helps."""
        while self.relieve(lots) or self.fill(lots):
            pass

    def relieve(self, lots: Lots) -> bool:
        """Let sites with too much give to the neediest; says if anything moved."""
        rich = self.rich()
        needy = _Needy(self) if rich else None
        moved = False
        for donor in rich:
            while needy and self.over[donor] >= self.bound and self.shed(donor, needy, lots):
                moved = True
        return moved

    def shed(self, donor: int, needy: _Needy, lots: Lots) -> bool:
        for size, block in _by_fit(lots[donor], self.over[donor] - self.bound + 1):
            receiver = needy.first(self.barred(block, donor))
            if receiver is not None and self.over[receiver] < 0:
                self.give((size, block), donor, receiver, lots)
                return True
        return False

    def fill(self, lots: Lots) -> bool:
        """Let sites with too little receive from the richest; says if anything moved."""
        poor = self.poor()
        donors = [(-over, site) for site, over in enumerate(self.over) if poor and over > 0]
        heapify(donors)
        moved = False
        for receiver in poor:
            while self.over[receiver] <= -self.bound and self.draw(receiver, donors, lots):
                moved = True
        return moved

    def draw(self, receiver: int, donors: list[tuple[int, int]], lots: Lots) -> bool:
        unable = []
        moved = False
        while donors and not moved:
            known, donor = donors[0]
            if self.over[donor] <= 0:
                heappop(donors)
            elif self.over[donor] != -known:
                heapreplace(donors, (-self.over[donor], donor))
            elif lot := self.fitting(receiver, donor, lots):
                self.give(lot, donor, receiver, lots)
                moved = True
            else:
                unable.append(heappop(donors))
        for entry in unable:
            heappush(donors, entry)
        return moved

    def fitting(self, receiver: int, donor: int, lots: Lots) -> tuple[int, int] | None:
        for size, block in _by_fit(lots[donor], 1 - self.bound - self.over[receiver]):
            if self.groups()[receiver] not in self.barred(block, donor):
                return size, block
        return None

    def give(self, lot: tuple[int, int], donor: int, receiver: int, lots: Lots) -> None:
        del lots[donor][bisect_left(lots[donor], lot)]
        insort(lots[receiver], lot)
        self.shift(lot[1], donor, receiver)

    def lots(self, sites: Iterable[tuple[int, Sequence[int]]]) -> Lots:
        """What may be given: of each (block, sites) the block's replica on each of the sites."""
        lots: Lots = [[] for _ in self.over]
        for block, holders in sites:
            for site in holders:
                if self.sizes[block]:
                    lots[site].append((self.sizes[block], block))
        for lot in lots:
            lot.sort()
        return lots


class _Primaries(_Level):
    """Who leads. Any site may, and a backup's taking over costs nothing."""

    def groups(self) -> Sequence[int]:
        return [0] * len(self.over)

    def barred(self, block: int, leaving: int | None = None) -> Collection[int]:
        return ()

    def rehome(self, block: int, donor: int, receiver: int) -> None:
        """The old primary stays as the first backup where it may."""
        taken = self.domains[receiver]
        others = [site for site in self.homes[block] if self.domains[site] != taken]
        self.homes[block] = [receiver, *others]

    def plan(self, copies: int, promoted: Sequence[bool]) -> None:
        """Roles first, then blocks that need a copy anyway, then others, promoted ones last."""
        for block, home in enumerate(self.homes):
            if home:
                self.load(block, home[0])
        self.settle(1)
        if self.rich() or self.poor():
            self.hand_over()
        reluctance = [
            2 if promoted[block] else len(home) >= copies for block, home in enumerate(self.homes)
        ]
        for most in range(3):
            if self.rich() or self.poor():
                leading = ((b, h[:1]) for b, h in enumerate(self.homes) if reluctance[b] <= most)
                self.even(self.lots(leading))

    def hand_over(self) -> None:
        """Let backups lead where that brings a site that is out of bound nearer to it."""
        leading = self.lots((block, home[:1]) for block, home in enumerate(self.homes))
        backing = self.lots((block, home[1:]) for block, home in enumerate(self.homes))
        for donor in self.rich():
            for _, block in _by_fit(leading[donor], self.over[donor] - self.bound + 1):
                backups = self.homes[block][1:]
                heir = min(backups, key=lambda site: self.over[site], default=donor)
                if self.over[donor] >= self.bound and self.over[heir] < 0:
                    self.shift(block, donor, heir)
        for heir in self.poor():
            for _, block in _by_fit(backing[heir], 1 - self.bound - self.over[heir]):
                donor = self.homes[block][0]
                if self.over[heir] <= -self.bound and self.over[donor] > 0:
                    self.shift(block, donor, heir)


class _Backups(_Level):
    """Who holds the other replicas, so that all roles together are fair."""

    def plan(self, copies: int) -> None:
        for block, home in enumerate(self.homes):
            for site in home:
                self.load(block, site)
        self.drop(copies)
        if copies > 1:
            self.settle(copies)
            self.even(self.lots((block, home[1:]) for block, home in enumerate(self.homes)))

    def drop(self, copies: int) -> None:
        """Let go of the backups beyond ``copies``, on the fullest sites."""
        for block, home in enumerate(self.homes):
            while len(home) > copies:
                site = max(home[1:], key=lambda site: (self.over[site], site))
                home.remove(site)
                self.over[site] -= self.sizes[block]


class _Needy:
    """Sites by need, kept by group so that a barred group is passed over in one step.

    Valid while sites only gain: an entry may promise too much need, and is corrected when met.
    """

    def __init__(self, level: _Level) -> None:
        self._need = level.need
        self._members: dict[int, list[Need]] = {}
        for site, group in enumerate(level.groups()):
            self._members.setdefault(group, []).append(level.need(site))
        for members in self._members.values():
            heapify(members)
        self._groups = [(members[0], group) for group, members in self._members.items()]
        heapify(self._groups)

    def first(self, barred: Collection[int]) -> int | None:
        """The neediest site outside the ``barred`` groups, or None."""
        passed = []
        found = None
        while self._groups and found is None:
            need, group = self._groups[0]
            if group in barred:
                passed.append(heappop(self._groups))
            elif (now := self._neediest(group)) != need:
                heapreplace(self._groups, (now, group))
            else:
                found = need[-1]
        for entry in passed:
            heappush(self._groups, entry)
        return found

    def _neediest(self, group: int) -> Need:
        members = self._members[group]
        while (now := self._need(members[0][-1])) != members[0]:
            heapreplace(members, now)
        return now


def _by_fit(lot: Sequence[tuple[int, int]], amount: int) -> Iterator[tuple[int, int]]:
    """The smallest that makes up ``amount`` first, then larger ones, then smaller ones downward."""
    middle = bisect_left(lot, (amount, 0))
    yield from lot[middle:]
    yield from reversed(lot[:middle])


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
    full: dict[int, int] = {}
    for domain in sorted(heft, key=lambda domain: -heft[domain]):
        if (copies - len(full)) * heft[domain] <= rest:
            break
        full[domain] = 0
        rest -= heft[domain]
    shares = []
    for weight, domain in zip(weights, domains, strict=True):
        if domain in full:  # by running sums, so that a domain's shares add up to the whole
            before, full[domain] = full[domain], full[domain] + weight
            upto = [total * rest * point // heft[domain] for point in (before, full[domain])]
            shares.append(upto[1] - upto[0])
        else:
            shares.append((copies - len(full)) * total * weight)
    return shares, rest


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
