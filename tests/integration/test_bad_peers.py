"""Peers that break the format, lie, stall or vanish: one connection ends, nothing else does."""

from __future__ import annotations

import asyncio
import struct

import pytest

from elasticps.core.ids import BlockId
from elasticps.errors import PeerUnavailable, WireError
from elasticps.wire.address import Address
from elasticps.wire.connection import connect
from elasticps.wire.frame import (
    FLAG_PAYLOAD_CHECKSUM,
    FLAG_REPLY,
    HEADER_SIZE,
    MAX_META,
    Header,
    Kind,
    Status,
    checksum,
    pack,
    unpack,
)
from tests.support.wire import (
    PATIENCE_S,
    Echo,
    Inbox,
    eventually,
    linked,
    on_both_loops_without_leaks,
    raw_link,
    raw_stream,
    reply_to,
)

ANY_PORT = Address.tcp("127.0.0.1", 0)
PULL = Header(kind=Kind.PULL, block=BlockId(7))
PUSH = Header(kind=Kind.PUSH, block=BlockId(7))
BIG = 4 << 20


def bad_frames() -> dict[str, tuple[bytes, str]]:
    good = pack(Header(kind=Kind.PUSH))

    def with_bytes(offset: int, data: bytes) -> bytes:
        return good[:offset] + data + good[offset + len(data) :]

    lying = Header(
        kind=Kind.PUSH, flags=FLAG_PAYLOAD_CHECKSUM, payload_length=4, payload_checksum=1
    )
    return {
        "magic": (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".ljust(HEADER_SIZE), "magic"),
        "version": (with_bytes(4, b"\x02"), "version"),
        "kind": (with_bytes(5, b"\xff"), "kind"),
        "meta length": (with_bytes(36, struct.pack("<I", MAX_META + 1)), "meta_length"),
        "length 2^63": (with_bytes(64, struct.pack("<Q", 2**63)), "payload_length"),
        "header checksum": (with_bytes(80, bytes(8)), "header_checksum"),
        "payload checksum": (pack(lying) + b"data", "payload_checksum"),
        "a reply nobody asked for, broken": (
            pack(Header(kind=Kind.PULL, flags=FLAG_REPLY)) + b"x" * HEADER_SIZE,
            "magic",
        ),
    }


@pytest.mark.parametrize("case", bad_frames())
@on_both_loops_without_leaks
async def test_broken_frame_closes_its_connection_and_disturbs_nothing_else(case: str) -> None:
    frame, field = bad_frames()[case]
    echo = Echo()
    async with linked(echo, ANY_PORT) as (server, conn):
        before = await conn.request(PULL, b"before", timeout_s=PATIENCE_S)
        async with raw_stream(server.address) as stream:
            stream.write(frame)
            await eventually(lambda: server.wire_errors == 1)
        await eventually(lambda: len(server.connections) == 1)
        after = await conn.request(PULL, b"after", timeout_s=PATIENCE_S)
    assert (before.meta, after.meta) == (b"before", b"after")
    assert [error.field for error in echo.errors] == [field]
    assert [meta for _, meta, _ in echo.frames] == [b"before", b"after"]
    assert server.wire_errors == 1


@on_both_loops_without_leaks
async def test_one_byte_at_a_time_is_only_slow() -> None:
    inbox = Inbox()
    frame = pack(Header(kind=Kind.PUSH, payload_length=20), b"meta") + b"p" * 20
    async with inbox.listen(ANY_PORT) as server, raw_stream(server.address) as stream:
        for byte in frame:
            stream.write(bytes([byte]))
            await stream.drain()
            await asyncio.sleep(0)
        await eventually(lambda: len(inbox.frames) == 1)
    assert inbox.frames[0][1:] == (b"meta", b"p" * 20)
    assert server.wire_errors == 0


@on_both_loops_without_leaks
async def test_truncated_then_silent_holds_nobody_up_and_can_be_aborted() -> None:
    echo = Echo()
    async with echo.listen(ANY_PORT) as server, raw_stream(server.address) as stream:
        stream.write(pack(Header(kind=Kind.PUSH, payload_length=BIG)) + b"part")
        await eventually(lambda: bool(echo.open) and not echo.open[0]._parser.between_frames)
        async with await connect(server.address, timeout_s=PATIENCE_S) as conn:
            await conn.request(PULL, timeout_s=PATIENCE_S)
        echo.open[0].abort()
        await eventually(lambda: not echo.open)
    assert server.wire_errors == 0


@on_both_loops_without_leaks
async def test_peer_that_closes_inside_a_frame_is_reported_as_gone() -> None:
    inbox = Inbox()
    async with inbox.listen(ANY_PORT) as server:
        async with raw_stream(server.address) as stream:
            stream.write(pack(Header(kind=Kind.PUSH))[:50])
        await eventually(lambda: inbox.closed_count == 1)
    assert isinstance(inbox.errors[0], PeerUnavailable)
    assert "middle of a frame" in inbox.errors[0].what
    assert (server.wire_errors, inbox.frames) == (0, [])


@on_both_loops_without_leaks
async def test_orderly_close_is_no_error() -> None:
    inbox = Inbox()
    async with linked(inbox, ANY_PORT) as (_server, conn):
        conn.send(PUSH)
        await eventually(lambda: bool(inbox.frames))
        await conn.aclose()
        await eventually(lambda: inbox.closed_count == 1)
        assert (conn.error, inbox.errors) == (None, [])


@on_both_loops_without_leaks
async def test_reset_fails_everything_in_flight_with_where() -> None:
    async with raw_link() as (peer, conn):
        tasks = [asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S)) for _ in range(10)]
        await peer.receive(10 * HEADER_SIZE)
        peer.reset()
        for task in tasks:
            with pytest.raises(PeerUnavailable) as caught:
                await task
            assert caught.value.where == str(peer.address)
        with pytest.raises(PeerUnavailable):
            await conn.request(PULL, timeout_s=PATIENCE_S)
        with pytest.raises(PeerUnavailable):
            conn.send(PUSH)
        with pytest.raises(PeerUnavailable):
            await conn.writable()


@on_both_loops_without_leaks
async def test_reply_over_its_limit_is_a_wire_error_and_ends_the_connection() -> None:
    async with raw_link() as (peer, conn):
        asked = conn.request(PULL, max_reply=9, timeout_s=PATIENCE_S)
        task = asyncio.create_task(asked)
        other = asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S))
        await peer.send(reply_to(await peer.receive(HEADER_SIZE), b"ten bytes!"))
        with pytest.raises(WireError) as caught:
            await task
        with pytest.raises(PeerUnavailable):
            await other
        assert (caught.value.field, caught.value.limit) == ("payload_length", "9 bytes")
        assert conn.error is caught.value


@on_both_loops_without_leaks
async def test_reply_of_another_kind_ends_the_connection() -> None:
    async with raw_link() as (peer, conn):
        task = asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S))
        number = unpack(await peer.receive(HEADER_SIZE)).request
        await peer.send(pack(Header(kind=Kind.PUSH, flags=FLAG_REPLY, request=number)))
        with pytest.raises(PeerUnavailable):
            await task
        assert isinstance(conn.error, WireError)
        assert conn.error.field == "kind"


@on_both_loops_without_leaks
async def test_unasked_frame_without_a_dispatcher_ends_the_connection() -> None:
    async with raw_link() as (peer, conn):
        await peer.send(pack(Header(kind=Kind.CONTROL)))
        await eventually(lambda: conn.error is not None)
        assert isinstance(conn.error, WireError)


@on_both_loops_without_leaks
async def test_damaged_reply_payload_never_counts_as_an_answer() -> None:
    async with raw_link() as (peer, conn):
        task = asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S))
        number = unpack(await peer.receive(HEADER_SIZE)).request
        header = Header(
            kind=Kind.PULL,
            flags=FLAG_REPLY | FLAG_PAYLOAD_CHECKSUM,
            request=number,
            payload_length=4,
            payload_checksum=checksum(b"data"),
        )
        await peer.send(pack(header) + b"dbta")
        with pytest.raises(PeerUnavailable):
            await task
        assert isinstance(conn.error, WireError)
        assert conn.error.field == "payload_checksum"


@on_both_loops_without_leaks
async def test_silent_peer_is_unavailable_in_time() -> None:
    async with raw_link() as (_peer, conn):
        with pytest.raises(PeerUnavailable) as caught:
            await conn.request(PULL, timeout_s=0.05)
        assert caught.value.limit == "0.05 s"


@on_both_loops_without_leaks
async def test_request_beyond_a_limit_sends_nothing_and_harms_nothing() -> None:
    echo = Echo()
    async with linked(echo, ANY_PORT) as (_server, conn):
        with pytest.raises(WireError, match="meta_length"):
            await conn.request(PULL, bytes(MAX_META + 1), timeout_s=PATIENCE_S)
        with pytest.raises(ValueError, match="read-only"):
            await conn.request(PULL, into=b"read-only", timeout_s=PATIENCE_S)
        reply = await conn.request(PULL, bytes(MAX_META), timeout_s=PATIENCE_S)
        assert reply.header.status is Status.OK
    assert len(echo.frames) == 1
