"""The frame parser against every slicing of a stream, and against streams that are wrong."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.ids import BlockId
from elasticps.errors import WireError
from elasticps.wire.frame import (
    FLAG_EMPTY,
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    MAX_PAYLOAD,
    Header,
    Kind,
    checksum,
    pack,
)
from elasticps.wire.parser import READ_AHEAD, SCRATCH_SIZE, FrameParser


class Frame(NamedTuple):
    block: int
    meta: bytes
    payload: bytes | None

    def encoded(self) -> bytes:
        payload = self.payload or b""
        header = Header(
            kind=Kind.PUSH,
            flags=FLAG_PAYLOAD_CHECKSUM,
            block=BlockId(self.block),
            payload_length=len(payload),
            payload_checksum=checksum(payload),
        )
        return pack(header, self.meta) + payload


class Tray:
    """Collects whole frames; drops the payloads of the blocks in ``unwanted``."""

    def __init__(self, unwanted: Iterable[int] = ()) -> None:
        self.frames: list[Frame] = []
        self.asked: list[int] = []
        self.given: memoryview | None = None
        self._unwanted = set(unwanted)

    def destination(self, header: Header, meta: bytes) -> memoryview | None:
        self.asked.append(header.block)
        wanted = header.block not in self._unwanted
        self.given = memoryview(bytearray(header.payload_length)) if wanted else None
        return self.given

    def frame(self, header: Header, meta: bytes, payload: memoryview | None) -> None:
        assert payload is None or payload is self.given
        self.frames.append(
            Frame(header.block, meta, None if payload is None else payload.tobytes())
        )


def feed(parser: FrameParser, stream: bytes, sizes: Iterable[int]) -> None:
    """Give ``stream`` to the parser in reads of at most these sizes, as a socket would."""
    position = 0
    for size in sizes:
        if position == len(stream):
            return
        buffer = parser.get_buffer()
        chunk = stream[position : position + min(size, len(buffer))]
        buffer[: len(chunk)] = chunk
        position += len(chunk)
        parser.buffer_updated(len(chunk))
    assert position == len(stream)


PAYLOADS = st.one_of(
    st.none(),
    st.binary(min_size=1, max_size=200),
    st.integers(1, 3 * SCRATCH_SIZE).map(lambda size: bytes(i % 251 for i in range(size))),
)
FRAMES = st.lists(
    st.builds(Frame, st.integers(0, 3), st.binary(max_size=100), PAYLOADS), max_size=5
)
SIZES = st.lists(st.integers(1, 100_000), min_size=1, max_size=10)
EXAMPLES = settings(max_examples=300, deadline=None)


@EXAMPLES
@given(frames=FRAMES, sizes=SIZES, unwanted=st.sets(st.integers(0, 3)))
def test_any_slicing_gives_the_same_frames(
    frames: list[Frame], sizes: list[int], unwanted: set[int]
) -> None:
    tray = Tray(unwanted)
    parser = FrameParser(tray)
    feed(parser, b"".join(f.encoded() for f in frames), itertools.cycle([*sizes, 4096]))
    assert tray.frames == [
        frame._replace(payload=None) if frame.block in unwanted else frame for frame in frames
    ]
    assert tray.asked == [frame.block for frame in frames if frame.payload]
    assert parser.between_frames


def test_one_byte_at_a_time() -> None:
    frames = [Frame(1, b"meta", b"payload"), Frame(2, b"", None), Frame(3, b"m", b"p" * 300)]
    tray = Tray(unwanted=[3])
    feed(FrameParser(tray), b"".join(f.encoded() for f in frames), itertools.repeat(1))
    assert tray.frames == [*frames[:2], frames[2]._replace(payload=None)]


@EXAMPLES
@given(stream=st.binary(max_size=600), sizes=SIZES)
def test_random_bytes_raise_wire_error_and_give_no_frame(stream: bytes, sizes: list[int]) -> None:
    tray = Tray()
    try:
        feed(FrameParser(tray), stream, itertools.cycle(sizes))
    except WireError:
        pass
    else:
        assert len(stream) < HEADER_SIZE
    assert tray.frames == []
    assert tray.asked == []


@EXAMPLES
@given(
    kind=st.integers(0, 12),
    flags=st.integers(0, 31),
    status=st.integers(0, 10),
    meta=st.binary(max_size=20),
    payload=st.binary(max_size=20),
    claimed=st.sampled_from([None, 21, MAX_PAYLOAD + 1, 2**63, 2**64 - 1]),
    digest=st.sampled_from([None, 0]),
)
def test_a_well_formed_lie_is_refused_or_waited_for(
    kind: int,
    flags: int,
    status: int,
    meta: bytes,
    payload: bytes,
    claimed: int | None,
    digest: int | None,
) -> None:
    length = len(payload) if claimed is None else claimed
    digest = checksum(payload) if digest is None else digest
    fixed = struct.pack(
        "<4sBBHHHIQQIIQQQQQ",
        *(b"EPS1", 1, kind, flags, status, 0, 0, 0, 0, 3, len(meta), 0, 0, 0, length, digest),
    )
    stream = fixed + struct.pack("<Q", checksum(fixed + meta)) + meta + payload
    known = kind in set(Kind) and flags < 32 and status <= 7
    empty = length == 0 or not flags & FLAG_EMPTY
    whole = length == len(payload) and (digest == checksum(payload) or not flags & 2)
    tray = Tray()
    parser = FrameParser(tray)
    try:
        feed(parser, stream, itertools.repeat(1000))
    except WireError:
        assert not (known and empty and whole)
    else:
        assert known
        assert whole or not parser.between_frames
    assert tray.frames == ([Frame(3, meta, payload or None)] if known and empty and whole else [])


@EXAMPLES
@given(frames=FRAMES.filter(bool), sizes=SIZES, data=st.data())
def test_a_flipped_bit_never_gives_a_wrong_frame(
    frames: list[Frame], sizes: list[int], data: st.DataObject
) -> None:
    stream = bytearray(b"".join(f.encoded() for f in frames))
    bit = data.draw(st.integers(0, 8 * len(stream) - 1))
    stream[bit // 8] ^= 1 << bit % 8
    tray = Tray()
    parser = FrameParser(tray)
    try:
        feed(parser, bytes(stream), itertools.cycle([*sizes, 4096]))
    except WireError:
        pass
    else:
        assert not parser.between_frames  # a longer length: it waits for what never comes
    assert tray.frames == frames[: len(tray.frames)]
    assert len(tray.frames) < len(frames)


@EXAMPLES
@given(
    size=st.integers(2, 3 * SCRATCH_SIZE), received=st.integers(0, 3 * SCRATCH_SIZE), sizes=SIZES
)
def test_discarded_payload_is_never_written_again(
    size: int, received: int, sizes: list[int]
) -> None:
    first, second = Frame(1, b"m", b"a" * size), Frame(2, b"", b"b" * 10)
    received = min(received, size - 1)
    head = len(first.encoded()) - size
    stream = first.encoded() + second.encoded()
    tray = Tray()
    parser = FrameParser(tray)
    feed(parser, stream[: head + received], itertools.repeat(1 << 20))
    into = tray.given
    assert into is not None
    parser.discard_payload()
    into[:] = b"z" * size
    feed(parser, stream[head + received :], itertools.cycle([*sizes, 4096]))
    assert into.tobytes() == b"z" * size
    assert tray.frames == [first._replace(payload=None), second]


def test_discard_without_a_payload_in_transit_changes_nothing() -> None:
    frame = Frame(1, b"meta", b"payload")
    tray = Tray()
    parser = FrameParser(tray)
    parser.discard_payload()
    feed(parser, frame.encoded()[:50], [50])
    parser.discard_payload()
    feed(parser, frame.encoded()[50:], itertools.repeat(1000))
    parser.discard_payload()
    assert tray.frames == [frame]


def test_a_large_payload_is_received_where_it_belongs() -> None:
    frame = Frame(1, b"m" * 30, b"p" * 3 * READ_AHEAD)
    tray = Tray()
    parser = FrameParser(tray)
    stream = frame.encoded()
    feed(parser, stream[: HEADER_SIZE + 30 + 70], [HEADER_SIZE, 30, 70])
    assert len(parser.get_buffer()) == 3 * READ_AHEAD - 70
    feed(parser, stream[HEADER_SIZE + 30 + 70 :], [2 * READ_AHEAD, READ_AHEAD])
    assert tray.frames == [frame]


def test_one_read_takes_many_small_frames() -> None:
    frames = [Frame(number % 4, b"meta", b"payload") for number in range(20)]
    tray = Tray()
    stream = b"".join(frame.encoded() for frame in frames)
    feed(FrameParser(tray), stream, [len(stream)])
    assert tray.frames == frames


def test_unwanted_payload_passes_through_bounded_memory() -> None:
    tray = Tray(unwanted=[1])
    parser = FrameParser(tray)
    payload = bytes(10 * SCRATCH_SIZE + 1)
    stream = Frame(1, b"", payload).encoded()
    feed(parser, stream[:HEADER_SIZE], [HEADER_SIZE])
    for start in range(HEADER_SIZE, len(stream), SCRATCH_SIZE):
        assert len(parser.get_buffer()) <= SCRATCH_SIZE
        feed(parser, stream[start : start + SCRATCH_SIZE], [SCRATCH_SIZE])
    assert tray.frames == [Frame(1, b"", None)]


def test_damaged_unwanted_payload_is_noticed() -> None:
    stream = bytearray(Frame(1, b"", b"p" * 100).encoded())
    stream[-1] ^= 1
    with pytest.raises(WireError, match="payload_checksum"):
        feed(FrameParser(Tray(unwanted=[1])), bytes(stream), itertools.repeat(1000))


def test_payload_over_the_receivers_limit_is_refused_before_it_is_asked_for() -> None:
    tray = Tray()
    with pytest.raises(WireError, match="payload_length"):
        feed(
            FrameParser(tray, max_payload=99),
            Frame(1, b"", b"p" * 100).encoded(),
            itertools.repeat(1000),
        )
    assert tray.asked == []


class Careless(Tray):
    """Gives memory that a payload of four bytes must not be received into."""

    def __init__(self, memory: memoryview) -> None:
        super().__init__()
        self._memory = memory

    def destination(self, header: Header, meta: bytes) -> memoryview | None:
        return self._memory


@pytest.mark.parametrize(
    "memory",
    [
        memoryview(b"read"),
        memoryview(bytearray(5)),
        memoryview(bytearray(3)),
        memoryview(bytearray(8))[::2],
        memoryview(bytearray(4)).cast("i"),
    ],
)
def test_unfit_destination_is_a_bug_and_gets_no_bytes(memory: memoryview) -> None:
    with pytest.raises(ValueError, match="destination"):
        feed(FrameParser(Careless(memory)), Frame(1, b"", b"data").encoded(), itertools.repeat(99))
    assert memory.tobytes() == b"read" or not any(memory.tobytes())


def test_sink_error_leaves_the_parser_through_buffer_updated() -> None:
    class Refuses(Tray):
        def destination(self, header: Header, meta: bytes) -> memoryview | None:
            raise WireError("not now", field="block")

    with pytest.raises(WireError, match="not now"):
        feed(FrameParser(Refuses()), Frame(1, b"", b"data").encoded(), itertools.repeat(99))


class InPieces(Tray):
    """Gives memory in pieces of these sizes, over and over."""

    def __init__(self, sizes: Iterable[int]) -> None:
        super().__init__()
        self._sizes = itertools.cycle(sizes)
        self.pieces: list[memoryview] = []

    def destination(self, header: Header, meta: bytes) -> list[memoryview]:  # type: ignore[override]
        self.pieces, left = [], header.payload_length
        while left:
            size = min(left, next(self._sizes))
            self.pieces.append(memoryview(bytearray(size)))
            left -= size
        return self.pieces

    def frame(self, header: Header, meta: bytes, payload: memoryview | None) -> None:
        assert payload is None
        self.frames.append(Frame(header.block, meta, b"".join(self.pieces) or None))
        self.pieces = []


@EXAMPLES
@given(
    frames=FRAMES,
    sizes=SIZES,
    pieces=st.lists(st.integers(1, 3 * READ_AHEAD), min_size=1, max_size=4),
)
def test_a_payload_in_several_pieces_is_the_same_however_it_is_sliced(
    frames: list[Frame], sizes: list[int], pieces: list[int]
) -> None:
    tray = InPieces(max(each, 50) for each in pieces)
    parser = FrameParser(tray)
    feed(parser, b"".join(f.encoded() for f in frames), itertools.cycle([*sizes, 4096]))
    assert tray.frames == frames
    assert parser.between_frames


@pytest.mark.parametrize("sent", [0, 1, 40_000, 99_999])
def test_a_payload_in_several_pieces_that_is_discarded_is_not_written_to_any_more(
    sent: int,
) -> None:
    tray = InPieces([40_000])
    parser = FrameParser(tray)
    frame = Frame(1, b"", bytes([1]) * 100_000)
    head, rest = frame.encoded()[:HEADER_SIZE], frame.encoded()[HEADER_SIZE:]
    feed(parser, head + rest[:sent], itertools.repeat(10_000))
    pieces, tray.pieces = tray.pieces, []
    parser.discard_payload()
    feed(parser, rest[sent:] + Frame(2, b"m", None).encoded(), itertools.repeat(10_000))
    assert sum(map(sum, pieces)) == sent
    assert [each.block for each in tray.frames] == [1, 2]


@pytest.mark.parametrize("sizes", [(2, 1), (2, 3), (4, 0)])
def test_pieces_that_are_not_the_payload_are_a_bug(sizes: tuple[int, ...]) -> None:
    class Wrong(Tray):
        def destination(self, header: Header, meta: bytes) -> list[memoryview]:  # type: ignore[override]
            return [memoryview(bytearray(size)) for size in sizes]

    with pytest.raises(ValueError, match="destination"):
        feed(FrameParser(Wrong()), Frame(1, b"", b"data").encoded(), itertools.repeat(99))
