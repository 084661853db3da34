"""What a block and a ledger share on a simulated server: a role, streams to peers, and requests."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

from elasticps.core.ids import BlockId, ServerId
from elasticps.core.plan import Entry
from elasticps.core.records import CaughtUpRow
from elasticps.core.replica import Commit
from elasticps.core.replication import (
    Action,
    Answer,
    CaughtUp,
    Check,
    Free,
    Replication,
    Snapshot,
    Stop,
)
from elasticps.core.stream import Due, Sent, StreamOrder, outcome
from elasticps.sim.clock import MS
from elasticps.sim.messages import (
    CHECK_OF,
    STATUS_OF,
    Fingerprint,
    Kind,
    Message,
    Op,
    Request,
    Status,
)

if TYPE_CHECKING:
    from elasticps.sim.server import Server

FIRST_RETRY, LAST_RETRY = 2 * MS, 20 * MS


class Stream:
    """One replica's way to one peer, as ``server/streams.py`` goes it."""

    def __init__(self, hosted: Hosted, peer: ServerId) -> None:
        self._hosted = hosted
        self._server = hosted.server
        self._peer = peer
        self._order: StreamOrder[Op] = StreamOrder()
        self._sending: Any = None
        self._attempt = 0
        self._resting = False
        self._stopped = self._flows = False
        self._retry = FIRST_RETRY
        self._go_later(0)

    def publish(self, op: Op) -> None:
        self._order.publish(op, counted=self._hosted.replication.counts(self._peer))
        self._go()

    def prove(self, commit: Commit) -> None:
        """Tell the peer that a round is committed, over a way that the stream has gone."""
        if self._stopped or not self._flows or self._peer not in self._server.listed:
            return
        replication = self._hosted.replication
        message = Message(Kind.PROOF, self._hosted.block, replication.epoch, commit)
        self._server.network.request(
            self._server, self._peer, message, lambda *_: None, lambda: None
        )

    def stop(self) -> None:
        self._stopped = True

    def _go_later(self, delay: int) -> None:
        self._resting = True
        self._server.later(delay, self._rested)

    def _rested(self) -> None:
        self._resting = False
        self._go()

    def _go(self) -> None:
        if self._stopped or self._resting or self._sending is not None:
            return
        due = self._order.due()
        if due is Due.NOTHING:
            return
        if due is Due.OVERFLOW:
            self._break()
            return
        if due is Due.SNAPSHOT:
            self._order.begin()
            self._sending = self._hosted.snapshot()
        else:
            self._sending = self._order.take()
        self._deliver(self._attempt)

    def _deliver(self, attempt: int) -> None:
        if self._stopped or attempt != self._attempt:
            return
        if self._peer not in self._server.listed:
            self._break()
            return
        body = self._sending
        kind = Kind.OP if isinstance(body, Op) else Kind.SNAPSHOT
        message = Message(kind, self._hosted.block, self._hosted.replication.epoch, body)
        self._server.network.request(
            self._server,
            self._peer,
            message,
            lambda status, _: self._answered(attempt, status),
            lambda: self._lost(attempt),
        )

    def _answered(self, attempt: int, status: Status) -> None:
        if self._stopped or attempt != self._attempt:
            return
        sent = outcome(CHECK_OF.get(status, Check.UNKNOWN))
        if sent is Sent.TAKEN:
            self._flows = True
            version, self._sending, self._retry = self._sending.version, None, FIRST_RETRY
            self._hosted.acked(self._peer, version)
            self._go()
        elif sent is Sent.AGAIN:
            self._server.later(self._retry, self._deliver, attempt)
            self._retry = min(2 * self._retry, LAST_RETRY)
        else:
            self._break()

    def _lost(self, attempt: int) -> None:
        if not self._stopped and attempt == self._attempt:
            self._break()

    def _break(self) -> None:
        self._attempt += 1
        self._sending, self._flows = None, False
        self._order.start_over()
        self._hosted.perform(self._hosted.replication.restarted(self._peer))
        self._go_later(self._retry)
        self._retry = min(2 * self._retry, LAST_RETRY)


class Hosted(ABC):
    """One replica on a simulated server: the shell around its ``Replication``."""

    def __init__(self, server: Server, block: BlockId) -> None:
        self.server = server
        self.block = block
        self._streams: dict[ServerId, Stream] = {}

    @property
    @abstractmethod
    def replication(self) -> Replication: ...

    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """All that two replicas of one version must have in common."""

    @abstractmethod
    def snapshot(self) -> Any: ...

    @abstractmethod
    def install(self, snapshot: Any) -> None: ...

    @abstractmethod
    def follow(self, op: Op) -> bool:
        """Apply the next op as a backup; False when it does not fit here."""

    @abstractmethod
    def answer_durable(self, request: Request) -> None: ...

    @abstractmethod
    def refuse_waiting(self) -> None: ...

    def adopt(self, entry: Entry) -> None:
        self.perform(self.replication.adopt(entry))

    def acked(self, peer: ServerId, version: int) -> None:
        self.perform(self.replication.acked(peer, version))

    def publish(self, op: Op) -> None:
        self.server.world.published(self, op)
        for stream in list(self._streams.values()):
            stream.publish(op)

    def prove(self, commit: Commit) -> None:
        for stream in list(self._streams.values()):
            stream.prove(commit)

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Snapshot(peer=peer):
                    self._streams[peer] = Stream(self, peer)
                case Stop(peer=peer):
                    self._streams.pop(peer).stop()
                case CaughtUp():
                    self.server.promises_changed()
                case Answer(request=Request() as request, check=Check.OK):
                    self.answer_durable(request)
                case Answer(request=Request() as request, check=check):
                    request.answer(STATUS_OF[check])
                case Free():
                    self.refuse_waiting()

    def promises(self) -> list[CaughtUpRow]:
        return [
            CaughtUpRow(self.block, peer, self.replication.epoch, 1)
            for peer in self.replication.promised_learners
        ]

    # -- what a primary elsewhere sends ---------------------------------------------------------

    def take_snapshot(self, request: Request) -> None:
        message = request.message
        check = self.replication.check_snapshot(message.epoch, message.body.version)
        if check is Check.OK:
            self.install(message.body)
            self.server.check.followed(self, message.body.version, message.body.fingerprint)
        request.answer(STATUS_OF[check])

    def take_op(self, request: Request) -> None:
        message = request.message
        op: Op = message.body
        check = self.replication.check_op(message.epoch, op.version)
        if check is Check.OK and op.version > self.replication.version:
            if not self.follow(op):
                # The real one closes the connection: the stream breaks.
                self.server.network.break_(request.connection)
                return
            self.server.check.followed(self, op.version, op.fingerprint)
        request.answer(STATUS_OF[check])
