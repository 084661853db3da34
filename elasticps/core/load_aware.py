"""Placement by measured load: hot blocks leave the servers that are busiest, if that pays.

A server's burden is the share of a second that it is busy each second, by what is measured, for
each unit of its weight. Greedy: the busiest server hands over what lowers the burden of the pair
most, until all are near the mean. It begins later than it ends (hysteresis), not before loads have
been measured for a while, and makes no move that costs more than it gains within ``horizon_s``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from elasticps.core.ids import BlockId, ServerId
from elasticps.core.placement import place, spread
from elasticps.core.proposal import Load, PlacedBlock, Proposal, Situation

STATE_FACTOR = 3
"""Bytes that move for a byte of a block: its value and, with Adam, two moments."""

HANDOVER_S = 0.02
"""What a change of a block's servers costs besides: its requests wait for the plan."""

Home = tuple[ServerId, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """``band``: how far from the mean burden a server must be, relative to it, for moves to begin;
    they end at half of that. ``floor``: nor do they begin below this distance, in seconds a second.
    ``settle_s``: how long each block must have been measured. ``bandwidth`` turns bytes into
    seconds, in bytes a second. ``most``: moves in one proposal. Raises ValueError.
    """

    band: float = 0.25
    floor: float = 0.02
    settle_s: float = 10.0
    horizon_s: float = 60.0
    bandwidth: float = 1e9
    most: int = 64

    def __post_init__(self) -> None:
        for name in ("band", "horizon_s", "bandwidth", "most"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        for name in ("floor", "settle_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")

    def burden(self, load: Load) -> float:
        return load.apply_s_per_s + load.bytes_per_s / self.bandwidth


def propose(situation: Situation, rules: Rules) -> Proposal:
    """The moves that pay. Without any load the blocks are placed as in ``balanced``."""
    if any(block.learners for block in situation.blocks):
        return {}
    hot = [block for block in situation.blocks if rules.burden(block.load) > 0]
    if not hot:
        return balanced(situation)
    if any(block.load.measured_s < rules.settle_s for block in hot):
        return {}
    return _Moves(situation, rules, hot).made()


def balanced(situation: Situation) -> Proposal:
    """What the leader does by itself (``planner.targets``), as a proposal."""
    blocks = situation.blocks
    moving = {index for index, block in enumerate(blocks) if block.learners}
    homes = place(
        [block.size for block in blocks],
        situation.sites,
        replicas=situation.replicas,
        current=[block.destined for block in blocks],
        pinned=moving,
        wishes={index: block.wished_by for index, block in enumerate(blocks) if block.wished_by},
    )
    pairs = zip(blocks, homes, strict=True)
    return {block.block: home for block, home in pairs if home and home != block.destined}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Move:
    """``burden`` passes from ``donor`` to ``receiver``; ``worth``: seconds won beyond its price."""

    block: BlockId
    home: Home
    donor: ServerId
    receiver: ServerId
    burden: float
    worth: float


class _Moves:
    """One proposal in the making: burdens as they would be after the moves so far."""

    def __init__(self, situation: Situation, rules: Rules, hot: Sequence[PlacedBlock]) -> None:
        self._rules = rules
        self._room = spread(situation.sites, situation.replicas)
        loads = situation.server_loads
        sites = [site for site in situation.sites if site.server in loads]
        self._weights = {site.server: site.weight for site in sites}
        self._busy = {server: rules.burden(loads[server]) for server in self._weights}
        self._mean = sum(self._busy.values()) / max(sum(self._weights.values()), 1e-9)
        self._blocks = {block.block: block for block in hot}
        self._homes = {
            block.block: block.destined
            for block in hot
            if len(block.destined) == self._room.copies
            and all(server in self._busy for server in block.destined)
        }

    def made(self) -> Proposal:
        changed: dict[BlockId, Home] = {}
        share = 1.0
        while len(changed) < self._rules.most and self._is_uneven(share):
            share = 0.5  # begun, it goes on to half of the band
            move = self._next()
            if move is None:
                break
            self._busy[move.donor] -= move.burden
            self._busy[move.receiver] += move.burden
            changed[move.block] = move.home
            del self._homes[move.block]
        return changed

    def _is_uneven(self, share: float) -> bool:
        out = max((abs(self._burden(server) - self._mean) for server in self._busy), default=0.0)
        return out > share * max(self._rules.band * self._mean, self._rules.floor)

    def _burden(self, server: ServerId, more: float = 0.0) -> float:
        return (self._busy[server] + more) / self._weights[server]

    def _next(self) -> _Move | None:
        """The best move of the busiest server that has one worth its price."""
        for donor in sorted(self._busy, key=lambda server: (-self._burden(server), server)):
            if self._burden(donor) <= self._mean:
                return None
            moves = [move for move in self._of(donor) if move.worth > 0]
            if moves:
                return max(moves, key=lambda move: (move.worth, -move.block))
        return None

    def _of(self, donor: ServerId) -> Iterator[_Move]:
        for block, home in self._homes.items():
            if donor not in home:
                continue
            load, size = self._blocks[block].load, self._blocks[block].size
            if donor == home[0]:
                serving = load.bytes_per_s / self._rules.bandwidth
                for heir in home[1:]:
                    others = tuple(server for server in home if server != heir)
                    yield self._move(block, (heir, *others), donor, heir, serving, 0)
            receiver = self._least_busy(home, donor)
            if receiver is not None:
                moved = tuple(receiver if server == donor else server for server in home)
                burden = self._rules.burden(load) if donor == home[0] else load.apply_s_per_s
                yield self._move(block, moved, donor, receiver, burden, size)

    def _least_busy(self, home: Home, donor: ServerId) -> ServerId | None:
        """Who may hold a replica in place of the donor's."""
        taken = {self._room.domains[server] for server in home if server != donor}
        able = [
            server
            for server in self._busy
            if server not in home and self._room.domains[server] not in taken
        ]
        return min(able, key=lambda server: (self._burden(server), server), default=None)

    def _move(
        self,
        block: BlockId,
        home: Home,
        donor: ServerId,
        receiver: ServerId,
        burden: float,
        nbytes: int,
    ) -> _Move:
        after = max(self._burden(donor, -burden), self._burden(receiver, burden))
        gain = self._burden(donor) - after
        price = HANDOVER_S + STATE_FACTOR * nbytes / self._rules.bandwidth
        worth = gain * self._rules.horizon_s - price
        return _Move(
            block=block, home=home, donor=donor, receiver=receiver, burden=burden, worth=worth
        )
