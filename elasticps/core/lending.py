"""Who is lent which samples: what a ledger asks its data policy, and what it makes of the answer.

The ledger keeps the account of what is read, lent and left; a policy only shares out what is left.
So whatever a policy answers, no sample is lost or read twice: an unsound answer is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol

from elasticps.core.ids import WorkerId
from elasticps.core.ranges import (
    Range,
    Supply,
    common,
    common_sorted,
    count_of,
    cut_at,
    divide,
    first_of,
    less,
    less_sorted,
)

DYNAMIC, STATIC, LEASED, LOCAL = "dynamic", "static", "leased", "local"
MAX_PIECES = 8192
"""Ranges that a ledger keeps at most of each kind: it must fit the snapshot that a replica gets."""

Ranges = tuple[Range, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lending:
    """Samples are due. Positions count over all passes: ``p`` is of data epoch ``p // size``.

    ``members`` are all workers in rank order; ``borrowers`` those who are to be given samples now,
    ``wanted`` of them together at most, in the order in which they are served. ``unread`` may be
    lent: it is neither read nor lent; what was given back comes first. ``owned`` is what the
    policy's last answer said.

    ``speeds``: samples a second that a worker's script gets through, for those measured already.
    ``local``: the positions that workers have said lie on their own nodes.
    """

    size: int
    members: tuple[WorkerId, ...]
    borrowers: tuple[WorkerId, ...]
    wanted: int
    unread: Ranges
    owned: Mapping[WorkerId, Ranges] = field(default_factory=dict)
    speeds: Mapping[WorkerId, float] = field(default_factory=dict)
    local: Mapping[WorkerId, Ranges] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Loans:
    """``lent``: what each borrower gets. ``owned``: what the policy is to be told the next time.

    ``owned`` binds nobody: it is the policy's only memory, kept and replicated with the ledger.
    """

    lent: Mapping[WorkerId, Ranges]
    owned: Mapping[WorkerId, Ranges] = field(default_factory=dict)


class Lender(Protocol):
    """A data policy as a ledger sees it: a pure function."""

    def lend(self, asked: Lending) -> Loans: ...


class Dynamic:
    """The next samples that nobody has read, in near-equal slices."""

    def lend(self, asked: Lending) -> Loans:
        slices = divide(first_of(asked.unread, asked.wanted), len(asked.borrowers))
        return Loans(lent=dict(zip(asked.borrowers, slices, strict=True)))


class Static:
    """Each member owns a stripe of the data epoch, and reads that."""

    def lend(self, asked: Lending) -> Loans:
        """What is unread is divided anew for a new epoch, for other members, and where those who
        borrow have read their stripes while others have not.
        """
        now = _earliest_epoch(asked)
        owned = asked.owned
        everyone = asked.members
        if tuple(owned) != everyone or less(now, _all(owned)):
            owned = dict(zip(everyone, divide(now, len(everyone)), strict=True))
        if not any(common(now, owned[worker]) for worker in asked.borrowers):
            order = sorted(everyone, key=lambda worker: worker not in asked.borrowers)
            stripes = dict(zip(order, divide(now, len(order)), strict=True))
            owned = {worker: stripes[worker] for worker in everyone}
        left = {worker: common(now, owned[worker]) for worker in asked.borrowers}
        counts = _even(asked.wanted, {worker: count_of(left[worker]) for worker in left})
        return Loans(
            lent={worker: first_of(left[worker], counts[worker]) for worker in left}, owned=owned
        )


class Leased:
    """The next samples that nobody has read, to each worker as many as it is fast."""

    def lend(self, asked: Lending) -> Loans:
        """All borrow: they share what is wanted by their speeds, and are done at the same time.

        Some borrow, where workers do not move in step: the fastest member gets what is wanted of
        it, a slower one less.
        """
        counts = shares(asked)
        bounds = [0]
        for worker in asked.borrowers:
            bounds.append(bounds[-1] + counts[worker])
        slices = cut_at(first_of(asked.unread, bounds[-1]), bounds)
        return Loans(lent=dict(zip(asked.borrowers, slices, strict=True)))


class Local:
    """Samples that lie on a worker's own node first, and as many as it is fast."""

    def lend(self, asked: Lending) -> Loans:
        """Then what lies on no member's node, and then what lies on another's: nobody waits."""
        counts = shares(asked)
        left = _earliest_epoch(asked)
        lent: dict[WorkerId, Ranges] = dict.fromkeys(asked.borrowers, ())
        homes = _joined(_all(asked.local))
        own = {worker: asked.local.get(worker, ()) for worker in asked.borrowers}
        nobodys = dict.fromkeys(asked.borrowers, less_sorted(left, homes))
        anybodys = dict.fromkeys(asked.borrowers, left)
        for source in (own, nobodys, anybodys):
            for worker in asked.borrowers:
                wanted = counts[worker] - count_of(lent[worker])
                if wanted:
                    found = common_sorted(left, source[worker])
                    more = first_of(found, wanted)
                    lent[worker] += more
                    left = less_sorted(left, more)
        return Loans(lent={worker: _joined(parts) for worker, parts in lent.items()})


def shares(asked: Lending) -> dict[WorkerId, int]:
    """How many of the samples that are wanted each borrower is to get, by the measured speeds.

    Who was not measured yet counts as the mean of those who were. Each gets at least one, where
    there are enough: a speed that changes is measured by that.
    """
    left = min(asked.wanted, count_of(asked.unread))
    speeds = _assumed(asked.members, asked.speeds)
    if set(asked.borrowers) != set(asked.members):
        fastest = max(speeds.values())
        slow = sum(speeds[worker] for worker in asked.borrowers) / len(asked.borrowers) / fastest
        left = min(left, max(1, round(left * slow)))
    return apportioned(left, {worker: speeds[worker] for worker in asked.borrowers})


def _assumed(
    members: Sequence[WorkerId], measured: Mapping[WorkerId, float]
) -> dict[WorkerId, float]:
    known = [measured[worker] for worker in members if worker in measured]
    mean = sum(known) / len(known) if known else 1.0
    return {worker: measured.get(worker, mean) for worker in members}


def apportioned(wanted: int, weights: Mapping[WorkerId, float]) -> dict[WorkerId, int]:
    """Whole numbers that sum to ``wanted``, in proportion to ``weights``, which are positive.

    By largest remainders; each gets one at least, where there are enough.
    """
    least = 1 if wanted >= len(weights) else 0
    total = sum(weights.values())
    exact = {worker: wanted * weight / total for worker, weight in weights.items()}
    given = {worker: max(least, int(share)) for worker, share in exact.items()}
    over = wanted - sum(given.values())
    for worker in sorted(weights, key=lambda worker: given[worker] - exact[worker])[: max(0, over)]:
        given[worker] += 1
    for _ in range(-over):
        most = max(weights, key=lambda worker: given[worker] - least)
        given[most] -= 1
    return given


BUILT_IN: Mapping[str, Lender] = {
    DYNAMIC: Dynamic(),
    STATIC: Static(),
    LEASED: Leased(),
    LOCAL: Local(),
}


def settled(asked: Lending, loans: Loans, supply: Supply) -> Supply:
    """The supply after the loans. Raises ValueError, saying what is wrong, for unsound ones."""
    lent = _all(loans.lent)
    _check_ranges(lent)
    _check_ranges(_all(loans.owned))
    if strangers := sorted(set(loans.lent) - set(asked.borrowers)):
        raise ValueError(f"lends to {strangers}, who do not borrow")
    if strangers := sorted(set(loans.owned) - set(asked.members)):
        raise ValueError(f"gives to {strangers}, who are no members")
    if less(lent, asked.unread):
        raise ValueError(f"lends {less(lent, asked.unread)[0]}, which is read or lent already")
    if count_of(lent) > asked.wanted:
        raise ValueError(f"lends {count_of(lent)} samples where {asked.wanted} are due")
    in_order = sorted(lent, key=lambda part: part.start)
    for one, other in pairwise(in_order):
        if other.start < one.stop:
            raise ValueError(f"lends {other.start} twice")
    rest = supply.without(lent)
    if max(len(rest.given_back), len(_all(loans.owned))) > MAX_PIECES:
        raise ValueError(f"leaves more than {MAX_PIECES} pieces")
    return rest


def _check_ranges(ranges: Sequence[Range]) -> None:
    for part in ranges:
        whole = isinstance(part, Range) and type(part.start) is type(part.stop) is int
        if not (whole and 0 <= part.start < part.stop):
            raise ValueError(f"{part!r} is no range")


def _all(ranges: Mapping[WorkerId, Ranges]) -> list[Range]:
    return [part for each in ranges.values() for part in each]


def _earliest_epoch(asked: Lending) -> Ranges:
    """What is unread of the earliest data epoch, in order and in as few pieces as can be."""
    epoch = min(part.start for part in asked.unread) // asked.size
    whole = Range(epoch * asked.size, (epoch + 1) * asked.size)
    return _joined(common(asked.unread, (whole,)))


def _joined(ranges: Iterable[Range]) -> Ranges:
    joined: list[Range] = []
    for part in sorted(ranges, key=lambda part: part.start):
        if joined and joined[-1].stop == part.start:
            joined[-1] = Range(joined[-1].start, part.stop)
        else:
            joined.append(part)
    return tuple(joined)


def _even(wanted: int, left: Mapping[WorkerId, int]) -> dict[WorkerId, int]:
    """Share ``wanted`` as equally as what each has left allows; who has most gets the odd ones."""
    given = dict.fromkeys(left, 0)
    while wanted and (able := [worker for worker in left if given[worker] < left[worker]]):
        able.sort(key=lambda worker: given[worker] - left[worker])
        each, over = divmod(wanted, len(able))
        for turn, worker in enumerate(able):
            part = min(each + (turn < over), left[worker] - given[worker])
            given[worker] += part
            wanted -= part
    return given
