"""A group's requests on a server, one for each block, and the one answer to them all."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from elasticps.errors import PeerUnavailable
from elasticps.server.hosted import Request
from elasticps.wire.connection import Connection
from elasticps.wire.frame import FLAG_EMPTY, Header, Kind, Status
from elasticps.wire.groups import EMPTY, NOT_YET, SMALL_BYTES, GroupMeta, GroupReply, Piece
from elasticps.wire.messages import encode

if TYPE_CHECKING:
    from typing_extensions import Buffer


class Group:
    """Collects the answers to a GROUP; ``begun`` says that each of its requests has been made."""

    def __init__(
        self, conn: Connection, header: Header, meta: GroupMeta, refused: Counter[Status]
    ) -> None:
        self._conn = conn
        self.header = header
        self._kind = Kind.PULL if meta.push is None else Kind.PUSH
        self._refused = refused
        self._statuses = bytearray([NOT_YET]) * len(meta.pieces)
        self._metas: dict[int, bytes] = {}
        self._values: dict[int, Buffer] = {}
        self._requests: list[PieceRequest] = []
        self._left = len(meta.pieces)
        self._is_refused = self._is_begun = self._is_over = False

    def request(self, piece: Piece) -> PieceRequest:
        """The next piece's request, as if it had come by itself."""
        own = self.header
        header = Header(
            self._kind,
            flags=own.flags | (FLAG_EMPTY if piece.nbytes == EMPTY else 0),
            job=own.job,
            plan_epoch=piece.plan_epoch,
            block=piece.block,
            worker=own.worker,
            seq=own.seq,
            round=own.round,
        )
        request = PieceRequest(
            self._conn, header, self._refused, group=self, index=len(self._requests)
        )
        self._requests.append(request)
        return request

    def begun(self) -> None:
        self._is_begun = True
        self._end()

    def answered(self, index: int, status: Status, meta: bytes, payload: Buffer | None) -> None:
        if self._is_over:
            return
        self._statuses[index] = status
        self._left -= 1
        self._is_refused |= status is not Status.OK
        if meta and (self._kind is Kind.PUSH or status is not Status.OK):
            self._metas[index] = meta
        if payload is not None:
            self._give(index, payload)
        self._end()

    def _give(self, index: int, value: Buffer) -> None:
        """A large value goes at once, and those after it are made meanwhile."""
        if memoryview(value).nbytes <= SMALL_BYTES:
            self._values[index] = value
            return
        with contextlib.suppress(PeerUnavailable):
            self._conn.send(self.header.part(self._requests[index].header.block), payload=value)

    def _end(self) -> None:
        """Answer, if it is time: the memory that a pull names is not written to any more."""
        if self._is_over or not self._is_begun or (self._left and not self._is_refused):
            return
        self._is_over = True
        for request in self._requests:
            request.into = None
        values = b"".join(self._values[index] for index in sorted(self._values))
        self._tell(GroupReply(bytes(self._statuses), self._metas), values)

    def _tell(self, said: GroupReply, values: bytes) -> None:
        # A caller that is gone asks again over its next connection.
        with contextlib.suppress(PeerUnavailable):
            self._conn.send(self.header.reply(Status.OK), encode(said), values or None)


@dataclass(slots=True, eq=False, kw_only=True)
class PieceRequest(Request):
    """One block's request of a group: what it is answered goes there."""

    group: Group
    index: int

    def answer(self, status: Status, meta: bytes = b"", payload: Buffer | None = None) -> None:
        if status is not Status.OK and self.header.kind is Kind.PUSH:
            self.refused[status] += 1
        self.group.answered(self.index, status, meta, payload)
