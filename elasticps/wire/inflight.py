"""Which reply belongs to which request: the requests of one connection that wait for an answer."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from elasticps.core.ids import BlockId
from elasticps.errors import ElasticError, WireError
from elasticps.wire.frame import FLAG_PART, Header, Kind

_LAST_NUMBER = (1 << 32) - 1


class Reply(msgspec.Struct, frozen=True):
    """The answer to a request. ``payload`` is ``into`` where its length fitted, else fresh."""

    header: Header
    meta: bytes
    payload: memoryview | None


@dataclass(frozen=True, slots=True)
class Parts:
    """Where the values of blocks go that come before a request's answer; ``here`` are whole."""

    into: Mapping[BlockId, memoryview]
    here: set[BlockId] = field(default_factory=set)

    def destination(self, header: Header) -> memoryview:
        """Raises WireError for what was not asked for, and for what comes again."""
        view = None if header.block in self.here else self.into.get(header.block)
        if view is None:
            raise WireError(f"a part of block {header.block}, which is not awaited", field="block")
        if len(view) != header.payload_length:
            raise WireError(
                f"a part of {header.payload_length} bytes of block {header.block}",
                field="payload_length",
                limit=f"{len(view)} bytes",
            )
        return view


def _new_future() -> asyncio.Future[Reply]:
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, kw_only=True, eq=False)
class Pending:
    """One request that waits; ``receiving`` while its reply's payload is in transit."""

    kind: Kind
    into: memoryview | None
    max_reply: int
    parts: Parts = field(default_factory=lambda: Parts({}))
    number: int = 0
    receiving: bool = False
    answer: asyncio.Future[Reply] = field(default_factory=_new_future)

    def destination(self, header: Header) -> memoryview:
        """Memory for a reply's payload. Raises WireError beyond max_reply."""
        size = header.payload_length
        self.receiving = True
        if header.flags & FLAG_PART:
            return self.parts.destination(header)
        if self.into is not None and len(self.into) == size:
            return self.into
        if size > self.max_reply:
            raise WireError(
                f"a reply of {size} bytes", field="payload_length", limit=f"{self.max_reply} bytes"
            )
        return memoryview(bytearray(size))

    def fail(self, error: ElasticError) -> None:
        if not self.answer.done():
            self.answer.set_exception(error)


class InFlight:
    """Gives each request of a connection its number, and each reply its request."""

    def __init__(self) -> None:
        self._pending: dict[int, Pending] = {}
        self._last = 0

    def add(self, pending: Pending) -> int:
        """The number of a request that is about to be sent: unused now, and never 0."""
        number = self._last
        while True:
            number = number + 1 if number < _LAST_NUMBER else 1
            if number not in self._pending:
                break
        self._last = pending.number = number
        self._pending[number] = pending
        return number

    def remove(self, pending: Pending) -> None:
        """The request waits no more; a reply that comes yet is nobody's."""
        if self._pending.get(pending.number) is pending:
            del self._pending[pending.number]

    def destination(self, header: Header) -> memoryview | None:
        """Where a reply's payload goes; None when nobody waits for it. Raises WireError."""
        pending = self._of(header)
        if pending is None:
            return None
        try:
            return pending.destination(header)
        except WireError as error:
            pending.fail(error)
            raise

    def settle(self, header: Header, meta: bytes, payload: memoryview | None) -> None:
        """Hand a whole reply to the request that waits for it, if one does. Raises WireError."""
        pending = self._of(header)
        if pending is None:
            return
        pending.receiving = False
        if header.flags & FLAG_PART:
            pending.parts.here.add(header.block)
            return
        del self._pending[header.request]
        if not pending.answer.done():
            pending.answer.set_result(Reply(header, meta, payload))

    def fail_all(self, error: ElasticError) -> None:
        for pending in self._pending.values():
            pending.fail(error)

    def _of(self, header: Header) -> Pending | None:
        pending = self._pending.get(header.request)
        if pending is not None and pending.kind is not header.kind:
            raise WireError(
                f"{header.kind.name} answers a request of kind {pending.kind.name}", field="kind"
            )
        return pending
