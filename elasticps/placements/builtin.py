"""The built-in placements as plugins."""

from __future__ import annotations

from elasticps.api.placement import Placement, Proposal, Situation
from elasticps.core import load_aware


class Balanced(Placement):
    """Fair by bytes and weights, moving few bytes. The default; the leader decides it by itself."""

    def propose(self, situation: Situation) -> Proposal:
        return load_aware.balanced(situation)


class LoadAware(Placement):
    """Moves hot blocks off the busiest servers. The options are ``core.load_aware.Rules``'s."""

    def __init__(
        self,
        band: float = 0.25,
        floor: float = 0.02,
        settle_s: float = 10.0,
        horizon_s: float = 60.0,
        bandwidth: float = 1e9,
        most: int = 64,
    ) -> None:
        self._rules = load_aware.Rules(
            band=band,
            floor=floor,
            settle_s=settle_s,
            horizon_s=horizon_s,
            bandwidth=bandwidth,
            most=most,
        )

    def propose(self, situation: Situation) -> Proposal:
        return load_aware.propose(situation, self._rules)
