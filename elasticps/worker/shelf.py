"""A worker's shelf: tensors of a round that it holds ready, for its peers to fetch.

A fetch of what is not there yet waits for it. What belongs to an earlier round than the newest that
has begun here is gone, and who asks for it is told so.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

import torch

from elasticps.core.ids import JobKey, Round
from elasticps.errors import PeerUnavailable, UsageError, WireError
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.messages import FetchMeta, HelloMeta, ShelfMeta, decode, encode
from elasticps.wire.tensors import bytes_of, dtype_name
from elasticps.worker.credentials import Listening

MAX_ENTRIES = 4096
MAX_WAITING = 65_536
"""Fetches that wait for what is not there yet: more than a job's workers want at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    connection: Connection
    header: Header
    fetch: FetchMeta


class Shelf:
    """``put`` by the worker, ``ask`` by its peers; all on the data loop."""

    def __init__(self) -> None:
        self._round = Round(0)
        self._entries: dict[str, torch.Tensor] = {}
        self._waiting: list[_Waiting] = []

    def put(self, round_: Round, key: str, tensor: torch.Tensor) -> None:
        """Hold ``tensor`` ready as ``key`` of ``round_``; its memory must stay as it is meanwhile.

        Raises UsageError for a round that is over, or when the shelf is full.
        """
        if round_ < self._round:
            raise UsageError(f"round {round_} is over", field="round", limit=f"{self._round}")
        self.begin(round_)
        if len(self._entries) >= MAX_ENTRIES:
            raise UsageError(f"{key} is one too many", field="key", limit=f"{MAX_ENTRIES} a round")
        self._entries[key] = tensor.detach().contiguous()
        self._look_again()

    def begin(self, round_: Round) -> None:
        """The rounds before ``round_`` are over: nothing of them is kept, nobody waits for it."""
        if round_ > self._round:
            self._round, self._entries = round_, {}
            self._look_again()

    def ask(self, connection: Connection, header: Header, fetch: FetchMeta) -> None:
        """Answer a peer's fetch, now or when what it wants is here."""
        if len(self._waiting) >= MAX_WAITING:
            raise WireError("too many fetches wait", field="fetch", limit=str(MAX_WAITING))
        self._waiting.append(_Waiting(connection, header, fetch))
        self._look_again()

    def forget(self, connection: Connection) -> None:
        """Nobody waits for an answer on this connection any more."""
        self._waiting = [each for each in self._waiting if each.connection is not connection]

    def _look_again(self) -> None:
        self._waiting = [each for each in self._waiting if not self._answered(each)]

    def _answered(self, waiting: _Waiting) -> bool:
        header, fetch = waiting.header, waiting.fetch
        if header.round < self._round:
            self._send(waiting, header.reply(Status.UNKNOWN))
            return True
        tensor = self._entries.get(fetch.key) if header.round == self._round else None
        if tensor is None:
            return False
        part = bytes_of(tensor)[fetch.start : fetch.stop] if tensor.numel() else None
        meta = ShelfMeta(dtype_name(tensor.dtype), tuple(tensor.shape), tensor.nbytes)
        self._send(waiting, header.reply(), encode(meta), part)
        return True

    def _send(
        self, waiting: _Waiting, reply: Header, meta: bytes = b"", part: memoryview | None = None
    ) -> None:
        with contextlib.suppress(PeerUnavailable):  # who is gone asks no more
            waiting.connection.send(reply, meta, part)


class ShelfSession:
    """The shelf's end of one peer's connection (a ``wire.connection.Dispatcher``)."""

    def __init__(
        self, cluster: str, job: JobKey, shelf: Shelf, listening: Listening | None = None
    ) -> None:
        self._cluster = cluster
        self._job = job
        self._shelf = shelf
        self._listening = listening
        self._is_greeted = False

    def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
        raise WireError(f"a {header.kind.name} takes no payload here", field="payload_length")

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        if header.kind is Kind.HELLO:
            hello = decode(meta, HelloMeta)
            if hello.cluster != self._cluster:
                raise WireError(f"a caller of cluster {hello.cluster!r}", field="cluster")
            if self._listening is not None:
                self._listening.check(hello, self._job)
            self._is_greeted = True
            conn.send(header.reply())
        elif header.kind is not Kind.FETCH or not self._is_greeted:
            raise WireError(f"a {header.kind.name} is not for a worker", field="kind")
        elif header.job != self._job:
            raise WireError(f"job {header.job}", field="job", limit=str(self._job))
        else:
            fetch = decode(meta, FetchMeta)
            if not 0 <= fetch.start <= fetch.stop:
                raise WireError(f"bytes {fetch.start} to {fetch.stop}", field="start")
            self._shelf.ask(conn, header, fetch)

    def closed(self, conn: Connection) -> None:
        self._shelf.forget(conn)
