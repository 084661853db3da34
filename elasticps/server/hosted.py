"""What a block of parameters and a job's ledger share on a server: a role, peers and requests."""

from __future__ import annotations

import contextlib
import logging
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from elasticps.core.ids import BlockId, JobKey, PlanEpoch, ServerId
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
from elasticps.errors import ElasticError, PeerUnavailable
from elasticps.server.loans import Loan
from elasticps.server.meter import Lag
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import OpMeta, RefusalMeta, SnapshotMeta, encode
from elasticps.wire.spans import Spans
from elasticps.wire.tallies import JobCounts

if TYPE_CHECKING:
    import torch
    from typing_extensions import Buffer

log = logging.getLogger(__name__)

NO_SERVER = ServerId("")

STATUS_OF = {
    Check.OK: Status.OK,
    Check.FENCED: Status.FENCED,
    Check.BEHIND: Status.BEHIND,
    Check.UNKNOWN: Status.UNKNOWN,
    Check.CONFLICT: Status.CONFLICT,
}


@dataclass(slots=True, eq=False)
class Request:
    """A client's request that can be answered now or later.

    A push that is not taken is counted in ``refused``. ``into``: the bytes of the worker's that a
    pull is to be written to. ``holds``: the digest of the value that the worker has.
    """

    connection: Connection
    header: Header
    refused: Counter[Status]
    into: torch.Tensor | None = None
    holds: int | None = None

    def answer(self, status: Status, meta: bytes = b"", payload: Buffer | None = None) -> None:
        if status is not Status.OK and self.header.kind is Kind.PUSH:
            self.refused[status] += 1
        # A caller that is gone asks again over its next connection.
        with contextlib.suppress(PeerUnavailable):
            self.connection.send(self.header.reply(status), meta, payload)


class Streams(Protocol):
    """The replica streams of one server, as a hosted thing uses them."""

    def open(self, hosted: Hosted, peer: ServerId) -> None: ...

    def close(self, hosted: Hosted, peer: ServerId) -> None: ...

    def room(self, hosted: Hosted, nbytes: int) -> Loan | None:
        """Memory that the block's peers can read an op's payload from; None where that is sent."""
        ...

    def publish(
        self, hosted: Hosted, op: OpMeta, payload: memoryview | None, loan: Loan | None = None
    ) -> None:
        """Give every peer an op. Its payload must stay as it is, and lies in the ``loan``, if
        there is one."""
        ...

    def prove(self, hosted: Hosted, commit: Commit) -> None: ...

    def promises_changed(self, job: JobKey) -> None: ...


class Hosted(ABC):
    """One replica on this server: the shell around its ``Replication``.

    It adds to ``counts``, and to ``spans`` while its job is profiled.
    """

    def __init__(self, job: JobKey, block: BlockId, streams: Streams, counts: JobCounts) -> None:
        self.job = job
        self.id = block
        self.counts = counts
        self.spans = Spans()
        self.lag = Lag()
        self.snapshot_bytes: dict[ServerId, int] = {}
        self._streams = streams

    @property
    @abstractmethod
    def replication(self) -> Replication: ...

    @property
    @abstractmethod
    def nbytes_held(self) -> int:
        """Bytes of memory that the replica's state takes."""

    @abstractmethod
    def snapshot(self) -> tuple[SnapshotMeta, bytes]:
        """The whole state as of now, copied."""

    @abstractmethod
    def install(self, meta: SnapshotMeta, payload: memoryview) -> None:
        """Replace the state by a snapshot. Raises WireError when it does not fit."""

    @abstractmethod
    def follow(self, op: OpMeta, payload: memoryview | None, *, lent: bool = False) -> None:
        """Apply the next op as a backup. Raises WireError when it does not fit.

        A payload that is ``lent`` is not to be written to, and stays as it is until this replica
        has applied the op or holds a later one.
        """

    @abstractmethod
    def answer_durable(self, request: Request) -> None:
        """Answer a request whose op is now held by every counted replica."""

    @abstractmethod
    def refuse_waiting(self) -> None:
        """This server does not lead any more: answer every parked request FENCED."""

    @abstractmethod
    def free(self) -> None:
        """Drop the state: this server is no replica any more."""

    def adopt(self, entry: Entry) -> None:
        """Take the plan's word on this replica's role."""
        self.perform(self.replication.adopt(entry))

    def drop(self) -> None:
        """The job is over: end the streams, answer whoever waits, let go of the state."""
        epoch = PlanEpoch(self.replication.epoch + 1)
        self.adopt(Entry(block=self.id, primary=NO_SERVER, epoch=epoch))

    def acked(self, peer: ServerId, version: int) -> None:
        self.perform(self.replication.acked(peer, version))

    def perform(self, actions: list[Action]) -> None:
        for action in actions:
            self._perform(action)

    def _perform(self, action: Action) -> None:
        match action:
            case Answer(request=Request() as request, check=Check.OK):
                self._answer_durable(request)
            case Snapshot(peer=peer):
                self._streams.open(self, peer)
            case Stop(peer=peer):
                self._streams.close(self, peer)
            case CaughtUp():
                self._streams.promises_changed(self.job)
            case Answer(request=Request() as request, check=check):
                request.answer(STATUS_OF[check])
            case Free():
                self.refuse_waiting()
                self.free()

    def _answer_durable(self, request: Request) -> None:
        """One answer that cannot be made must not cost the others that were due with it."""
        try:
            self.answer_durable(request)
        except ElasticError as error:
            log.exception("job=%s block=%s cannot answer", self.job, self.id)
            request.answer(Status.REFUSED, encode(RefusalMeta(str(error))))

    def promises(self) -> list[CaughtUpRow]:
        """The learners that this primary waits for since the present epoch."""
        return [
            CaughtUpRow(self.id, peer, self.replication.epoch, self.snapshot_bytes.get(peer, 0))
            for peer in self.replication.promised_learners
        ]

    def refusal(self, header: Header) -> Status | None:
        """Why a client's request cannot be served here and now; None when it can."""
        check = self.replication.check(header.plan_epoch)
        return None if check is Check.OK else STATUS_OF[check]
