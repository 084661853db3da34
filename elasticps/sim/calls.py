"""A simulated worker's way to the primaries: ``worker/client.py``, one call at a time each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from elasticps.core.ids import BlockId, Round, Seq, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.sim.clock import MS
from elasticps.sim.group import Answered
from elasticps.sim.messages import Kind, Message, Status
from elasticps.sim.process import Process

if TYPE_CHECKING:
    from elasticps.core.ids import NodeId
    from elasticps.sim.links import News
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
        self,
        kind: Kind,
        block: BlockId,
        body: Any,
        done: Done,
        seq: Seq = Seq(0),
        round_: Round = Round(0),
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


@dataclass(frozen=True, slots=True, eq=False)
class Asked:
    """A group that waits for its answer."""

    primary: ServerId
    calls: list[Call]


class Caller(Process):
    """A process that asks primaries, and follows the plan from one to the next."""

    def __init__(self, world: World, name: str, node: NodeId, worker: WorkerId) -> None:
        super().__init__(world.clock, name, node)
        self.id = worker
        self._network = world.network
        self._rows: dict[BlockId, Entry] = {}
        self._listed: dict[ServerId, object] = {}
        self._resting: list[Call] = []
        self._asked: list[Asked] = []

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
            self._give_up_deposed()

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
        self.begin(call)
        return call

    def call_each(self, calls: list[Call]) -> None:
        """Ask of a run of blocks: together what one server leads, and what that leaves singly."""
        groups: dict[ServerId, list[Call]] = {}
        for call in calls:
            row = self._rows.get(call.block)
            if row is not None and row.primary in self._listed:
                groups.setdefault(row.primary, []).append(call)
            else:
                self.begin(call)
        for primary, members in groups.items():
            if len(members) > 1:
                self._ask_together(primary, members)
            else:
                self.begin(members[0])

    def begin(self, call: Call) -> None:
        if call.block in self._rows:
            self._attempt(call, 0)
        else:
            self._resting.append(call)

    # -- groups ---------------------------------------------------------------------------------

    def _ask_together(self, primary: ServerId, calls: list[Call]) -> None:
        pieces = tuple(self._message(call, self._rows[call.block]) for call in calls)
        first = pieces[0]
        message = Message(Kind.GROUP, first.block, first.epoch, pieces, self.id)
        asked = Asked(primary, calls)
        self._asked.append(asked)
        self._network.request(
            self,
            primary,
            message,
            lambda status, answers: self._settle(asked, answers if status is Status.OK else ()),
            lambda: self._settle(asked, ()),
        )

    def _settle(self, asked: Asked, answers: Iterable[Answered]) -> None:
        """Take in what the server says of each, and ask singly whose answer is not known."""
        if asked not in self._asked:
            return
        self._asked.remove(asked)
        for call, (status, body) in zip(asked.calls, answers, strict=False):
            if call.active and status in FINAL:
                call.active = False
                call.done(status, body)
        for call in asked.calls:
            self._attempt(call, 0)

    def _give_up_deposed(self) -> None:
        """Do not wait for who does not lead all of a group any more: it may never answer."""
        for asked in list(self._asked):
            if any(self._rows[call.block].primary != asked.primary for call in asked.calls):
                self._settle(asked, ())

    # -- one by one -----------------------------------------------------------------------------

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
        self._network.request(
            self,
            row.primary,
            self._message(call, row),
            lambda status, body: self._answered(call, row, status, body),
            lambda: self._rest(call, row),
        )

    def _message(self, call: Call, row: Entry) -> Message:
        return Message(call.kind, call.block, row.epoch, call.body, self.id, call.seq, call.round)

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
