"""Bytes in, frames out, without input or output of its own: the receiving half of a connection.

The owner asks for a buffer, fills a part of it from anywhere, and says how much it filled. Payload
bytes land where they belong at once, but for the ends of payloads and what is small: those come
through a buffer of ``READ_AHEAD`` bytes, so that one read takes many small frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import xxhash

from elasticps.errors import WireError
from elasticps.wire.frame import (
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    MAX_PAYLOAD,
    Header,
    unpack,
    verify,
)

SCRATCH_SIZE = 64 * 1024
"""Bytes of the buffer through which unwanted payloads pass."""


READ_AHEAD = 32 * 1024
"""Bytes read at a time, and copied, where no payload wants as much: a read costs more than that."""


Target = memoryview | Sequence[memoryview]
"""Memory for a payload: in one piece, or in several that none is empty of."""


class Sink(Protocol):
    """Where a parser's frames go. What these methods raise leaves the parser's buffer_updated."""

    def destination(self, header: Header, meta: bytes) -> Target | None:
        """Where the payload shall land; asked once, before any of its bytes is received.

        Returns writable contiguous memoryviews, of exactly ``header.payload_length`` bytes in all,
        or None to have the payload received and dropped. Not asked for a frame without payload.
        """
        ...

    def frame(self, header: Header, meta: bytes, payload: memoryview | None) -> None:
        """One whole, verified frame. ``payload`` is what ``destination`` gave; None if dropped, and
        where it gave several pieces."""
        ...


class FrameParser:
    """Cuts a stream of bytes into frames, however it is sliced.

    After ``buffer_updated`` has raised WireError the stream has no meaning any more: drop it.
    """

    __slots__ = (
        "_ahead",
        "_complete",
        "_filled",
        "_hash",
        "_head",
        "_header",
        "_left",
        "_max_payload",
        "_meta",
        "_part",
        "_payload",
        "_rest",
        "_sink",
    )

    def __init__(self, sink: Sink, *, max_payload: int = MAX_PAYLOAD) -> None:
        self._sink = sink
        self._max_payload = max_payload
        self._head = memoryview(bytearray(HEADER_SIZE))
        self._ahead = memoryview(bytearray(READ_AHEAD))
        self._payload: memoryview | None = None
        self._rest: list[memoryview] = []
        self._hash: xxhash.xxh3_64 | None = None
        self._expect_header()

    @property
    def between_frames(self) -> bool:
        """True when no byte of an unfinished frame has been received."""
        return self._filled == 0 and self._part is self._head

    def get_buffer(self) -> memoryview:
        """The memory for the next bytes; never empty while the stream is sound."""
        return self._part[self._filled :] if self._is_direct else self._ahead

    def buffer_updated(self, nbytes: int) -> None:
        """The first ``nbytes`` of the last buffer hold stream bytes now. Raises WireError."""
        if self._is_direct:
            self._take(nbytes)
            return
        start = 0
        while start < nbytes:
            count = min(nbytes - start, len(self._part) - self._filled)
            self._part[self._filled : self._filled + count] = self._ahead[start : start + count]
            start += count
            self._take(count)

    @property
    def _is_direct(self) -> bool:
        """Do the next bytes go to where they belong, and not through the buffer?"""
        return len(self._part) - self._filled >= READ_AHEAD

    def _take(self, nbytes: int) -> None:
        """The next ``nbytes`` of the part in hand are there."""
        start = self._filled
        self._filled += nbytes
        if self._hash is not None:
            self._hash.update(self._part[start : self._filled])
        if self._filled == len(self._part):
            self._complete()

    def discard_payload(self) -> None:
        """Let go of the memory that the payload in transit goes to: not a byte more is written.

        The rest of that payload is received and dropped. No effect when none is in transit.
        """
        if self._payload is not None or self._complete == self._piece_complete:
            left = len(self._part) - self._filled + sum(map(len, self._rest))
            self._payload = None
            self._rest = []
            self._discard(left)

    def _expect(self, part: memoryview, complete: Callable[[], None]) -> None:
        self._part = part
        self._filled = 0
        self._complete = complete

    def _expect_header(self) -> None:
        self._payload = None
        self._hash = None
        self._expect(self._head, self._header_complete)

    def _header_complete(self) -> None:
        self._header = unpack(self._head, max_payload=self._max_payload)
        if self._header.meta_length:
            self._expect(memoryview(bytearray(self._header.meta_length)), self._meta_complete)
        else:
            self._accept(b"")

    def _meta_complete(self) -> None:
        self._accept(bytes(self._part))

    def _accept(self, meta: bytes) -> None:
        header = self._header
        verify(self._head, meta)
        self._meta = meta
        if header.flags & FLAG_PAYLOAD_CHECKSUM:
            self._hash = xxhash.xxh3_64()
        if header.payload_length == 0:
            self._finish()
            return
        payload = self._sink.destination(header, meta)
        if payload is None:
            self._discard(header.payload_length)
        elif isinstance(payload, memoryview):
            _check_destination([payload], header.payload_length)
            self._payload = payload
            self._expect(payload, self._finish)
        else:
            _check_destination(payload, header.payload_length)
            self._rest = list(reversed(payload))
            self._expect(self._rest.pop(), self._piece_complete)

    def _piece_complete(self) -> None:
        if self._rest:
            self._expect(self._rest.pop(), self._piece_complete)
        else:
            self._finish()

    def _discard(self, size: int) -> None:
        self._left = size
        self._expect(memoryview(bytearray(min(size, SCRATCH_SIZE))), self._scratch_complete)

    def _scratch_complete(self) -> None:
        self._left -= len(self._part)
        if self._left:
            self._expect(self._part[: self._left], self._scratch_complete)
        else:
            self._finish()

    def _finish(self) -> None:
        header, meta, payload = self._header, self._meta, self._payload
        if self._hash is not None and self._hash.intdigest() != header.payload_checksum:
            raise WireError("the payload was damaged on its way", field="payload_checksum")
        self._expect_header()
        self._sink.frame(header, meta, payload)


def _check_destination(pieces: Sequence[memoryview], size: int) -> None:
    for each in pieces:
        if each.readonly or not each.c_contiguous or each.format != "B":
            raise ValueError("a payload's destination must be writable contiguous bytes")
        if each.ndim != 1 or not len(each):
            raise ValueError("a payload's destination must be flat, and not empty")
    if sum(map(len, pieces)) != size:
        raise ValueError(f"a payload of {size} bytes needs a destination of {size} bytes")
