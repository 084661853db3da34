"""The frame layout: it is what it says, byte for byte, and each breach names field and limit."""

from __future__ import annotations

import struct

import msgspec
import pytest
import xxhash

from elasticps.core.ids import BlockId, JobKey, PlanEpoch, Round, Seq, WorkerId
from elasticps.errors import WireError
from elasticps.wire.frame import (
    FLAG_EMPTY,
    FLAG_PAYLOAD_CHECKSUM,
    FLAG_REPLY,
    HEADER_SIZE,
    MAX_META,
    MAX_PAYLOAD,
    Header,
    Kind,
    Status,
    pack,
    unpack,
    verify,
)

FULL = Header(
    kind=Kind.PUSH,
    flags=FLAG_PAYLOAD_CHECKSUM,
    status=Status.BEHIND,
    codec=0x0506,
    request=0x0708090A,
    job=JobKey(11),
    plan_epoch=PlanEpoch(2**64 - 1),
    block=BlockId(12),
    meta_length=3,
    worker=WorkerId(13),
    seq=Seq(14),
    round=Round(15),
    payload_length=16,
    payload_checksum=17,
)


def broken(offset: int, form: str, value: object) -> bytes:
    """A packed header with one field overwritten and its checksum made right again."""
    head = bytearray(pack(Header(kind=Kind.PULL)))
    struct.pack_into(form, head, offset, value)
    struct.pack_into("<Q", head, 80, xxhash.xxh3_64_intdigest(bytes(head[:80])))
    return bytes(head)


def unpack_and_verify(packed: bytes) -> None:
    unpack(packed)
    verify(packed[:HEADER_SIZE], packed[HEADER_SIZE:])


def test_layout_is_fixed_byte_for_byte() -> None:
    fixed = struct.pack(
        "<4sBBHHHIQQIIQQQQQ",
        *(b"EPS1", 1, 2, 2, 2, 0x0506, 0x0708090A, 11, 2**64 - 1, 12, 3, 13, 14, 15, 16, 17),
    )
    check = struct.pack("<Q", xxhash.xxh3_64_intdigest(fixed + b"abc"))
    assert pack(FULL, b"abc") == fixed + check + b"abc"
    assert len(fixed + check) == HEADER_SIZE == 88


def test_header_comes_back_as_it_was_packed() -> None:
    packed = pack(FULL, b"abc")
    header = unpack(memoryview(packed)[:HEADER_SIZE])
    assert header == FULL
    assert type(header.kind) is Kind
    assert type(header.status) is Status
    verify(packed[:HEADER_SIZE], b"abc")


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("status", Status)
def test_every_kind_and_status_travels(kind: Kind, status: Status) -> None:
    header = Header(kind=kind, status=status, flags=FLAG_REPLY)
    assert unpack(pack(header)) == header


@pytest.mark.parametrize(
    ("packed", "field", "limit"),
    [
        (broken(0, "<4s", b"HTTP"), "magic", "b'EPS1'"),
        (broken(4, "<B", 2), "version", "1"),
        (broken(5, "<B", 0), "kind", f"1 to {max(Kind)}"),
        (broken(5, "<B", max(Kind) + 1), "kind", f"1 to {max(Kind)}"),
        (broken(6, "<H", 32), "flags", "0x1f"),
        (broken(8, "<H", 9), "status", "0 to 7"),
        (broken(36, "<I", MAX_META + 1), "meta_length", f"{MAX_META} bytes"),
        (broken(64, "<Q", 2**63), "payload_length", f"{MAX_PAYLOAD} bytes"),
        (broken(64, "<Q", MAX_PAYLOAD + 1), "payload_length", f"{MAX_PAYLOAD} bytes"),
    ],
)
def test_breach_names_field_and_limit(packed: bytes, field: str, limit: str) -> None:
    with pytest.raises(WireError) as caught:
        unpack(packed)
    assert (caught.value.field, caught.value.limit) == (field, limit)


def test_empty_push_with_payload_is_refused() -> None:
    with pytest.raises(WireError) as caught:
        pack(Header(kind=Kind.PUSH, flags=FLAG_EMPTY, payload_length=1))
    assert caught.value.field == "payload_length"


def test_limits_hold_for_the_sender_too() -> None:
    with pytest.raises(WireError, match="meta_length"):
        pack(Header(kind=Kind.PULL), bytes(MAX_META + 1))
    with pytest.raises(WireError, match="payload_length"):
        pack(Header(kind=Kind.PULL, payload_length=MAX_PAYLOAD + 1))
    with pytest.raises(WireError, match="header"):
        pack(Header(kind=Kind.PULL, block=BlockId(2**32)))


def test_receiver_may_set_a_lower_payload_limit() -> None:
    with pytest.raises(WireError, match="100 bytes"):
        unpack(pack(Header(kind=Kind.PUSH, payload_length=101)), max_payload=100)


def test_any_flipped_bit_of_header_or_meta_is_noticed() -> None:
    packed = pack(FULL, b"abc")
    for bit in range(len(packed) * 8):
        damaged = bytearray(packed)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(WireError):
            unpack_and_verify(bytes(damaged))


def test_reply_keeps_the_identities_and_drops_the_lengths() -> None:
    reply = FULL.reply(Status.FENCED, codec=1)
    assert reply == msgspec.structs.replace(
        FULL,
        flags=FLAG_REPLY,
        status=Status.FENCED,
        codec=1,
        meta_length=0,
        payload_length=0,
        payload_checksum=0,
    )
    assert reply.is_reply
    assert not FULL.is_reply
