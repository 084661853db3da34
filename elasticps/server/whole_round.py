"""A worker's whole round on the server that leads all of it: pushes, then its vote, then pulls.

Each part is what the worker itself would ask next, when it would: the blocks and the ledger know no
difference, and a part that is not granted ends it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from elasticps.core.commands import Answer, Committed
from elasticps.core.ids import LEDGER
from elasticps.errors import ElasticError
from elasticps.server.group import Group
from elasticps.server.hosted import Request
from elasticps.server.joint_pulls import JointPulls, Pulls
from elasticps.server.landed import Landed
from elasticps.server.ledger_host import LedgerHost
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.groups import GroupMeta, GroupReply
from elasticps.wire.messages import PullMeta, encode
from elasticps.wire.whole_rounds import RoundMeta, RoundReply

if TYPE_CHECKING:
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

_answers = msgspec.msgpack.Decoder(Answer)


@dataclass(frozen=True, slots=True)
class Parts:
    """What a round's parts are done by.

    ``push`` makes a group's pushes, ``pulls`` says what of a group can be pulled here, ``ledger``
    is where votes go, None for nowhere.
    """

    push: Callable[[Group, GroupMeta, Landed | None], None]
    pulls: Callable[[Group, GroupMeta], Pulls]
    ledger: Callable[[], LedgerHost | None]
    joint_pulls: JointPulls


class WholeRound:
    """A ``joint_pulls.Puller``, once its vote has been granted.

    What is granted at once goes on at once. Else it goes on by itself, in a turn of the loop that
    is nobody else's: who grants it late is in the middle of something, and another's connection.
    """

    def __init__(self, request: Request, meta: RoundMeta, parts: Parts) -> None:
        self._request = request
        self._meta = meta
        self._parts = parts
        self._pushed = self._pulled = GroupReply(b"")
        self._proof = PullMeta()
        self._answer = b""
        self._next: Callable[[], None] | None = None
        self._is_going_on = False

    def start(self, incoming: Landed | None) -> None:
        """Raises WireError for what no worker may ask."""
        group = self._group(self._meta.push, self._have_pushed)
        self._next = lambda: self._parts.push(group, self._meta.push, incoming)
        self._go_on()

    def _go_on(self) -> None:
        self._is_going_on = True
        while self._next is not None:
            act, self._next = self._next, None
            act()
        self._is_going_on = False

    def _then(self, act: Callable[[], None]) -> None:
        self._next = act
        if not self._is_going_on:
            self._is_going_on = True
            asyncio.get_running_loop().call_soon(self._go_on_late)

    def _go_on_late(self) -> None:
        if not self._request.connection.closed:  # else its worker asks again, part by part
            self._guarded(self._go_on)

    def _guarded(self, act: Callable[[], None]) -> None:
        try:
            act()
        except ElasticError:
            log.exception("worker %s breaks a limit", self._request.header.worker)
            self._request.connection.abort()

    def _group(self, meta: GroupMeta, tell: Callable[[GroupReply, bytes], None]) -> _Part:
        request = self._request
        part = _Part(request.connection, request.header, meta, request.refused)
        part.tell = tell
        return part

    def _have_pushed(self, said: GroupReply, _: bytes) -> None:
        self._pushed = said
        self._then(self._end if any(said.statuses) else self._vote)

    def _vote(self) -> None:
        ledger, asked = self._parts.ledger(), self._request.header
        header = Header(
            Kind.LEDGER,
            job=asked.job,
            plan_epoch=self._meta.ledger_epoch,
            block=LEDGER,
            worker=asked.worker,
        )
        if ledger is None or ledger.refusal(header) is not None:
            self._end()
            return
        ballot = _Ballot(
            self._request.connection, header, self._request.refused, tell=self._have_voted
        )
        ledger.carry_out(ballot, self._meta.vote, encode(self._meta.vote))

    def _have_voted(self, status: Status, answer: bytes) -> None:
        self._answer = answer if status is Status.OK else b""
        self._then(self._pull if self._answer else self._end)

    def _pull(self) -> None:
        answer: Answer = _answers.decode(self._answer)
        if not isinstance(answer, Committed):
            self._end()
            return
        self._proof = PullMeta(answer.commit, answer.floor)
        self._parts.joint_pulls.add(self._request.header.job, answer.commit, self)

    def begin(self) -> Pulls | None:
        """A turn of the loop later: the server may not lead the job any more."""
        if self._request.connection.closed:
            return None
        if self._parts.ledger() is None:
            self._end()
            return None
        meta = msgspec.structs.replace(self._meta.pull, pull=self._proof)
        begun: list[Pulls] = []
        group = self._group(meta, self._have_pulled)
        self._guarded(lambda: begun.append(self._parts.pulls(group, meta)))
        return begun[0] if begun else None

    def end(self, pulls: Pulls) -> None:
        self._next = pulls.answer
        self._go_on_late()

    def _have_pulled(self, said: GroupReply, values: bytes) -> None:
        self._pulled = said
        self._then(lambda: self._end(values))

    def _end(self, values: bytes = b"") -> None:
        pulled = self._pulled if self._pulled.statuses else None
        reply = RoundReply(self._pushed, self._answer, pulled)
        self._request.answer(Status.OK, encode(reply), values or None)


class _Part(Group):
    """A group that is answered within its round."""

    tell: Callable[[GroupReply, bytes], None]

    def _tell(self, said: GroupReply, values: bytes) -> None:
        self.tell(said, values)


@dataclass(slots=True, eq=False, kw_only=True)
class _Ballot(Request):
    """The vote as the ledger sees it."""

    tell: Callable[[Status, bytes], None]

    def answer(self, status: Status, meta: bytes = b"", payload: Buffer | None = None) -> None:
        self.tell(status, meta)
