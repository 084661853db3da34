"""Any bytes to the frame parser and the messages: what must hold of them, however they are sliced.

An input is a byte of switches, a byte that counts slice sizes, the sizes, and then the stream.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from elasticps.errors import WireError
from elasticps.server.tensor_block import _unpacked
from elasticps.wire import messages
from elasticps.wire.frame import (
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    MAX_META,
    Header,
    Kind,
    checksum,
    unpack,
)
from elasticps.wire.parser import SCRATCH_SIZE, FrameParser

REPAIR, DROP_ODD = 1, 2
"""Switches: make checksums right, which no search would find; drop odd blocks' payloads."""
MAX_PAYLOAD = 1 << 16
LARGEST_BUFFER = max(MAX_PAYLOAD, MAX_META, SCRATCH_SIZE)
META_TYPES = tuple(
    found for name, found in vars(messages).items() if name.endswith("Meta") or name == "PeerNote"
)
_CHECKED = HEADER_SIZE - 8


class Finding(AssertionError):
    """Something that must not come of any bytes did."""


@dataclass(frozen=True, slots=True)
class Frame:
    header: Header
    meta: bytes
    payload: bytes | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came out of a stream: whole frames, the error's field, and how far whole frames went."""

    frames: tuple[Frame, ...]
    error: str | None
    whole: int
    between_frames: bool


class Sink:
    """Takes frames and holds each against the bytes of the stream that it must have come from."""

    def __init__(self, stream: bytes, drop_odd: bool) -> None:
        self.frames: list[Frame] = []
        self.read = 0
        self._stream = stream
        self._drop_odd = drop_odd
        self.begins = 0

    def destination(self, header: Header, meta: bytes) -> memoryview | None:
        require(0 < header.payload_length <= MAX_PAYLOAD, "memory beyond the limit is asked for")
        dropped = self._drop_odd and header.block % 2
        return None if dropped else memoryview(bytearray(header.payload_length))

    def frame(self, header: Header, meta: bytes, payload: memoryview | None) -> None:
        head_end = self.begins + HEADER_SIZE
        meta_end = head_end + header.meta_length
        end = meta_end + header.payload_length
        head = self._stream[self.begins : head_end]
        require(self.read >= end, "a byte was read twice")
        require(unpack(head, max_payload=MAX_PAYLOAD) == header, "another header than was sent")
        require(meta == self._stream[head_end:meta_end], "another meta than was sent")
        sent = struct.unpack_from("<Q", head, _CHECKED)[0]
        require(checksum(head[:_CHECKED] + meta) == sent, "a wrong header checksum was taken")
        body = self._stream[meta_end:end]
        if header.flags & FLAG_PAYLOAD_CHECKSUM:
            require(checksum(body) == header.payload_checksum, "a wrong checksum was taken")
        require(payload is None or payload.tobytes() == body, "another payload than was sent")
        self.frames.append(Frame(header, meta, None if payload is None else body))
        self.begins = end


def require(holds: bool, what: str) -> None:
    if not holds:
        raise Finding(what)


def one_input(data: bytes) -> None:
    """Raises Finding, or whatever must not have come out."""
    if len(data) < 2:
        return
    switches, sizes, stream = data[0], data[2 : 2 + data[1] % 8], data[2 + data[1] % 8 :]
    if switches & REPAIR:
        stream = repaired(stream)
    whole = fed(stream, (len(stream) or 1,), drop_odd=bool(switches & DROP_ODD))
    for slices in ((1,), [size + 1 for size in sizes] or (7,)):
        sliced = fed(stream, slices, drop_odd=bool(switches & DROP_ODD))
        require(sliced == whole, f"in slices of {slices} it is another stream")
    for frame in whole.frames:
        read_message(frame)


def fed(stream: bytes, sizes: Sequence[int], *, drop_odd: bool) -> Outcome:
    """What a parser makes of the stream when it comes in reads of at most these sizes."""
    sink = Sink(stream, drop_odd)
    parser = FrameParser(sink, max_payload=MAX_PAYLOAD)
    error = None
    try:
        _feed(parser, sink, stream, itertools.cycle(sizes))
    except WireError as caught:
        require(bool(caught.field), "an error names no field")
        error = caught.field
    return Outcome(tuple(sink.frames), error, sink.begins, parser.between_frames)


def _feed(parser: FrameParser, sink: Sink, stream: bytes, sizes: Iterable[int]) -> None:
    for size in sizes:
        if sink.read == len(stream):
            return
        buffer = parser.get_buffer()
        require(0 < len(buffer) <= LARGEST_BUFFER, f"a buffer of {len(buffer)} bytes")
        chunk = stream[sink.read : sink.read + min(size, len(buffer))]
        buffer[: len(chunk)] = chunk
        sink.read += len(chunk)
        parser.buffer_updated(len(chunk))


def read_message(frame: Frame) -> None:
    """As every message that there is: only a WireError may say that it is none."""
    for meta_type in META_TYPES:
        try:
            message = messages.decode(frame.meta, meta_type)
        except WireError:
            continue
        _comes_back(message, messages.decode(messages.encode(message), meta_type))
        if isinstance(message, messages.StateMeta) and frame.payload is not None:
            _read_tensors(message, frame.payload)
    if frame.header.kind is Kind.CONTROL:
        try:
            control = messages.decode_control(frame.meta)
        except WireError:
            return
        _comes_back(control, messages.decode_control(messages.encode(control)))


def _comes_back(message: msgspec.Struct, again: msgspec.Struct) -> None:
    equal = message == again or messages.encode(message) == messages.encode(again)  # NaN is not NaN
    require(equal, f"a {type(message).__name__} does not come back as it was")


def _read_tensors(meta: messages.StateMeta, payload: bytes) -> None:
    try:
        tensors = _unpacked(meta, memoryview(payload))
    except WireError:
        return
    held = sum(tensor.nbytes for tensor in tensors.values())
    require(held == len(payload), f"{held} bytes of tensors out of {len(payload)}")


def repaired(stream: bytes) -> bytes:
    """The stream with right checksums wherever its lengths lead, as a peer that lies would send."""
    fixed = bytearray(stream)
    start = 0
    while start + HEADER_SIZE <= len(fixed):
        (flags,) = struct.unpack_from("<H", fixed, start + 6)
        (meta,) = struct.unpack_from("<I", fixed, start + 36)
        (payload,) = struct.unpack_from("<Q", fixed, start + 64)
        body = start + HEADER_SIZE + meta
        end = body + payload
        if end > len(fixed):
            end = len(fixed)
        elif flags & FLAG_PAYLOAD_CHECKSUM:
            struct.pack_into("<Q", fixed, start + 72, checksum(bytes(fixed[body:end])))
        covered = fixed[start : start + _CHECKED] + fixed[start + HEADER_SIZE : body]
        struct.pack_into("<Q", fixed, start + _CHECKED, checksum(bytes(covered)))
        start = end
    return bytes(fixed)
