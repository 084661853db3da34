"""A simulated worker's way to the primaries: ``worker/client.py``, one call at a time each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elasticps.core.ids import BlockId, Round, Seq, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.sim.clock import MS
from elasticps.sim.messages import Kind, Message, Status
from elasticps.sim.process import Process

if TYPE_CHECKING:
    from elasticps.core.ids import NodeId
    from elasticps.sim.daemon import News
    from elasticps.sim.world import World

FIRST_RETRY, LAST_RETRY = 1 * MS, 16 * MS
FINAL = (Status.OK, Status.STALE_GENERATION, Status.CONFLICT)

Done = Callable[[Status, Any], None]


class Call:
    """One request to a block's primary, wherever it is by now."""

    __slots__ = (
        "active",
        "block",
        "body",
        "done",
        "kind",
        "rests",
        "retry",
        "round",
        "seq",
        "tries",
    )

    def __init__(
        self, kind: Kind, block: BlockId, body: Any, done: Done, seq: Seq, round_: Round
    ) -> None:
        self.kind = kind
        self.block = block
        self.body = body
        self.done = done
        self.seq = seq
        self.round = round_
        self.active = True
        self.tries = 0
        self.retry = FIRST_RETRY
        self.rests = -1
        """The epoch that did not serve it, while it waits to be tried again."""


class Caller(Process):
    """A process that asks primaries, and follows the plan from one to the next."""

    def __init__(self, world: World, name: str, node: NodeId, worker: WorkerId) -> None:
        super().__init__(world.clock, name, node)
        self.id = worker
        self._network = world.network
        self._rows: dict[BlockId, Entry] = {}
        self._listed: dict[ServerId, object] = {}
        self._resting: list[Call] = []

    def hear(self, news: News) -> None:
        """The daemon's word on servers and plan."""
        if news.servers is not None:
            self._listed = news.servers
            self._network.forget(self, self._listed)
        if news.entries is not None:
            for entry in news.entries:
                self._rows[entry.block] = entry
            for call in list(self._resting):
                if self._rows[call.block].epoch > call.rests:
                    self._attempt(call, call.tries)

    def call(
        self,
        kind: Kind,
        block: BlockId,
        body: Any,
        done: Done,
        *,
        seq: Seq = Seq(0),
        round_: Round = Round(0),
    ) -> Call:
        """Ask until there is an answer that is for the caller to judge: ``done`` gets it."""
        call = Call(kind, block, body, done, seq, round_)
        if block in self._rows:
            self._attempt(call, 0)
        else:
            self._resting.append(call)
        return call

    def cancel(self, call: Call) -> None:
        call.active = False
        if call in self._resting:
            self._resting.remove(call)

    def _attempt(self, call: Call, tries: int) -> None:
        if not call.active or call.tries != tries:
            return
        if call in self._resting:
            self._resting.remove(call)
        call.tries += 1
        row = self._rows[call.block]
        if row.primary not in self._listed:
            self._rest(call, row)
            return
        message = Message(
            call.kind, call.block, row.epoch, call.body, self.id, call.seq, call.round
        )
        self._network.request(
            self,
            row.primary,
            message,
            lambda status, body: self._answered(call, row, status, body),
            lambda: self._rest(call, row),
        )

    def _answered(self, call: Call, row: Entry, status: Status, body: Any) -> None:
        if not call.active:
            return
        if status in FINAL:
            call.active = False
            call.done(status, body)
        else:
            self._rest(call, row)

    def _rest(self, call: Call, row: Entry) -> None:
        """Try again when the plan changes for this block, or a little later."""
        if not call.active:
            return
        if self._rows[call.block].epoch > row.epoch:
            self._attempt(call, call.tries)
            return
        call.rests = row.epoch
        self._resting.append(call)
        self.later(call.retry, self._attempt, call, call.tries)
        call.retry = min(2 * call.retry, LAST_RETRY)
