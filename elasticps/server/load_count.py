"""What a server says of its load: all that it holds is looked at, one replica after the other."""

from __future__ import annotations

from heapq import nlargest

from elasticps.core.ids import JobKey
from elasticps.core.proposal import Load
from elasticps.core.replication import Role
from elasticps.server.hosted import Hosted
from elasticps.server.ledger_host import LedgerHost
from elasticps.server.parameter_block import ParameterBlock
from elasticps.server.tally import Holding, Tallies
from elasticps.wire.control_messages import HotBlock, ServerLoad

MAX_HOT = 64
BYTES_PER_S = 1e9
"""What a byte counts beside a second of applying, for which blocks are told of at all."""


class LoadCount:
    """As of ``now_s``, a monotonic time."""

    def __init__(self, now_s: float) -> None:
        self._now_s = now_s
        self._holdings: dict[JobKey, Holding] = {}
        self._led: list[HotBlock] = []
        self._bytes_per_s = self._apply_s_per_s = self._measured_s = 0.0
        self._hosted = self._pushes = self._rounds = 0

    def add(self, item: Hosted) -> None:
        self._hosted += 1
        self._holdings.setdefault(item.job, Holding()).add(item, self._now_s)
        if isinstance(item, LedgerHost):
            self._rounds = max(self._rounds, item.round)
        elif isinstance(item, ParameterBlock):
            self._pushes += item.pushes
            load = item.meter.load(self._now_s)
            self._bytes_per_s += load.bytes_per_s
            self._apply_s_per_s += load.apply_s_per_s
            self._measured_s = max(self._measured_s, load.measured_s)
            if item.replication.role is Role.PRIMARY:
                self._led.append(HotBlock(item.job, item.id, load))

    def told(self, tallies: Tallies) -> ServerLoad:
        tally = tallies.told(self._holdings)
        return ServerLoad(
            blocks=self._hosted,
            bytes_held=sum(row.holding.nbytes for row in tally.jobs),
            pushes=self._pushes,
            rounds=self._rounds,
            total=Load(
                bytes_per_s=self._bytes_per_s,
                apply_s_per_s=self._apply_s_per_s,
                measured_s=self._measured_s,
            ),
            hot=tuple(nlargest(MAX_HOT, self._led, key=_cost)),
            tally=tally,
        )


def _cost(row: HotBlock) -> float:
    return row.load.apply_s_per_s + row.load.bytes_per_s / BYTES_PER_S
