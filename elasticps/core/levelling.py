"""Levelling: sites give or receive replicas until each is within one block of its ideal share.

Moves are few: sites within that bound stay as they are unless another needs them. Sites, blocks
and groups are plain indexes here; what they stand for is the matter of ``placement``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, heapreplace

Lot = tuple[int, int]
"""(size, block): a replica that its site may give."""

Lots = list[list[Lot]]
"""For each site what it may give, the smallest first."""

Step = tuple[Lot, int, int]
"""A lot, its donor, its receiver."""

Need = tuple[bool, bool, int, int]
"""A site's place in the queue for more; its last item is the site."""


class Level(ABC):
    """Sites on the scales. A site is rich, or poor, if it is out by one largest block or more.

    ``over[site]`` is what the site holds above its ideal share, in the units of ``sizes``; the sum
    is zero once all is dealt out. ``homes[block]`` are the sites that hold the block, which the
    ``pinned`` ones do not change. A donor is above its share and a receiver below it when they
    meet, so every move brings them nearer.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        shares: Sequence[int],
        groups: Sequence[int],
        fresh: Sequence[bool],
        homes: list[list[int]],
        pinned: Collection[int] = (),
    ) -> None:
        self.sizes = sizes
        self.bound = max(sizes)
        self.over = [-share for share in shares]
        self.groups = groups
        self.fresh = fresh
        self.homes = homes
        self.pinned = pinned

    @abstractmethod
    def barred(self, block: int, leaving: int | None = None) -> Collection[int]:
        """Groups that a replica of ``block`` may not join, ``leaving`` being the site it leaves."""

    @abstractmethod
    def rehome(self, block: int, donor: int, receiver: int) -> None:
        """Note in ``homes`` that ``receiver`` takes over from ``donor``."""

    def rich(self) -> list[int]:
        return [site for site, over in enumerate(self.over) if over >= self.bound]

    def poor(self) -> list[int]:
        poor = [site for site, over in enumerate(self.over) if over <= -self.bound]
        return sorted(poor, key=lambda site: self.over[site])

    def need(self, site: int) -> Need:
        """Sorts first who must receive, then newcomers with room, then by what they lack."""
        over = self.over[site]
        old = over >= 0 or not self.fresh[site]
        return (over > -self.bound, old, over, site)

    def turn(self, block: int) -> int:
        """Which of the blocks of one size is settled first."""
        return block

    def load(self, block: int, site: int) -> None:
        self.over[site] += self.sizes[block]

    def shift(self, block: int, donor: int, receiver: int) -> None:
        self.over[donor] -= self.sizes[block]
        self.load(block, receiver)
        self.rehome(block, donor, receiver)

    def settle(self, copies: int) -> None:
        """Give every block that lacks replicas to the neediest, the largest block first."""
        lacking = [block for block, home in enumerate(self.homes) if len(home) < copies]
        needy = Needy(self) if lacking else None
        for block in sorted(lacking, key=lambda block: (-self.sizes[block], self.turn(block))):
            home = self.homes[block]
            while needy and len(home) < copies:
                site = needy.first(self.barred(block))
                assert site is not None, "fewer groups than copies"
                home.append(site)
                self.load(block, site)

    def lots(self, holders: Iterable[tuple[int, Sequence[int]]]) -> Lots:
        """The replicas that may be given: of each (block, sites) the block's on those sites."""
        lots: Lots = [[] for _ in self.over]
        for block, sites in holders:
            if self.sizes[block] and block not in self.pinned:
                for site in sites:
                    lots[site].append((self.sizes[block], block))
        for lot in lots:
            lot.sort()
        return lots

    def even(self, lots: Lots) -> None:
        """Move what ``lots`` allow until no site is rich or poor, or nothing helps."""
        while self.relieve(lots) or self.fill(lots) or self.relay(lots):
            pass

    def give(self, lot: Lot, donor: int, receiver: int, lots: Lots) -> None:
        del lots[donor][bisect_left(lots[donor], lot)]
        insort(lots[receiver], lot)
        self.shift(lot[1], donor, receiver)

    def relieve(self, lots: Lots) -> bool:
        """Let the rich give to the neediest; says if anything moved."""
        rich = self.rich()
        needy = Needy(self) if rich else None
        moved = False
        for donor in rich:
            while needy and self.over[donor] >= self.bound and self._shed(donor, needy, lots):
                moved = True
        return moved

    def _shed(self, donor: int, needy: Needy, lots: Lots) -> bool:
        for lot in by_fit(lots[donor], self.over[donor] - self.bound + 1):
            receiver = needy.first(self.barred(lot[1], donor))
            if receiver is not None and self.over[receiver] < 0:
                self.give(lot, donor, receiver, lots)
                return True
        return False

    def fill(self, lots: Lots) -> bool:
        """Let the poor receive from the fullest; says if anything moved."""
        poor = self.poor()
        donors = [(-over, site) for site, over in enumerate(self.over) if poor and over > 0]
        heapify(donors)
        moved = False
        for receiver in poor:
            while self.over[receiver] <= -self.bound and self._draw(receiver, donors, lots):
                moved = True
        return moved

    def _draw(self, receiver: int, donors: list[tuple[int, int]], lots: Lots) -> bool:
        unable = []
        moved = False
        while donors and not moved:
            known, donor = donors[0]
            if self.over[donor] <= 0:
                heappop(donors)
            elif self.over[donor] != -known:
                heapreplace(donors, (-self.over[donor], donor))
            elif lot := self._fitting(receiver, donor, lots):
                self.give(lot, donor, receiver, lots)
                moved = True
            else:
                unable.append(heappop(donors))
        for entry in unable:
            heappush(donors, entry)
        return moved

    def _fitting(self, receiver: int, donor: int, lots: Lots) -> Lot | None:
        for lot in by_fit(lots[donor], 1 - self.bound - self.over[receiver]):
            if self.groups[receiver] not in self.barred(lot[1], donor):
                return lot
        return None

    def relay(self, lots: Lots) -> bool:
        """Where no single move helps, move along a chain of sites; says if anything moved."""
        for donor in self.rich():
            below = {site for site, over in enumerate(self.over) if over < 0}
            if self._pass_on([donor], below, lots):
                return True
        for receiver in self.poor():
            above = [site for site, over in enumerate(self.over) if over > 0]
            if self._pass_on(above, {receiver}, lots):
                return True
        return False

    def _pass_on(self, starts: Sequence[int], ends: Collection[int], lots: Lots) -> bool:
        chain = self._chain(starts, ends, lots)
        once_each = len({lot for lot, _, _ in chain}) == len(chain)
        if not (once_each and self._gain(chain) > 0):
            return False
        for lot, donor, receiver in chain:
            self.give(lot, donor, receiver, lots)
        return True

    def _gain(self, chain: Sequence[Step]) -> int:
        """How much nearer to their shares the sites would be, all together."""
        after: dict[int, int] = {}
        for (size, _), donor, receiver in chain:
            after[donor] = after.get(donor, self.over[donor]) - size
            after[receiver] = after.get(receiver, self.over[receiver]) + size
        return sum(abs(self.over[site]) - abs(over) for site, over in after.items())

    def _chain(self, starts: Sequence[int], ends: Collection[int], lots: Lots) -> list[Step]:
        """The shortest chain of moves from a start to an end, last step first; empty if none."""
        unseen: dict[int, list[int]] = {}
        begun = set(starts)
        for site, group in enumerate(self.groups):
            if site not in begun:
                unseen.setdefault(group, []).append(site)
        came: dict[int, Step] = {}
        reached = list(starts)
        for donor in reached:
            for lot in reversed(lots[donor]):
                barred = self.barred(lot[1], donor)
                for group in [group for group in unseen if group not in barred]:
                    for site in unseen.pop(group):
                        came[site] = (lot, donor, site)
                        reached.append(site)
                        if site in ends:
                            return _back(site, came)
        return []


class Needy:
    """Sites by need, kept by group so that a barred group is passed over in one step.

    Valid while receivers only gain: an entry that promises too much is corrected when met.
    """

    def __init__(self, level: Level) -> None:
        self._need = level.need
        self._members: dict[int, list[Need]] = {}
        for site, group in enumerate(level.groups):
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


def by_fit(lots: Sequence[Lot], amount: int) -> Iterator[Lot]:
    """The smallest that makes up ``amount`` first, then larger ones, then smaller ones downward."""
    middle = bisect_left(lots, (amount, 0))
    yield from lots[middle:]
    yield from reversed(lots[:middle])


def _back(end: int, came: dict[int, Step]) -> list[Step]:
    steps = []
    while end in came:
        steps.append(came[end])
        end = came[end][1]
    return steps
