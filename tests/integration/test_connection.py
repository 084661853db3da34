"""Connections over real sockets, under both event loops: what they carry and what they survive."""

from __future__ import annotations

import asyncio
import gc
import socket
from pathlib import Path

import msgspec
import pytest
import torch
import uvloop

from elasticps.core.ids import BlockId
from elasticps.errors import PeerUnavailable, WireError
from elasticps.wire import connection
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import (
    FLAG_PAYLOAD_CHECKSUM,
    HEADER_SIZE,
    Header,
    Kind,
    pack,
    unpack,
)
from elasticps.wire.inflight import Parts
from elasticps.wire.listener import listen
from tests.support.wire import (
    PATIENCE_S,
    Echo,
    Inbox,
    eventually,
    linked,
    on_both_loops_without_leaks,
    raw_link,
    raw_peer,
    reply_to,
)

ANY_PORT = Address.tcp("127.0.0.1", 0)
PULL = Header(kind=Kind.PULL, block=BlockId(7))
PUSH = Header(kind=Kind.PUSH, block=BlockId(7))
BIG = 4 << 20


@pytest.fixture(params=["tcp", "unix"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Address:
    return ANY_PORT if request.param == "tcp" else Address.unix(tmp_path / "server.sock")


def pattern(size: int, seed: int = 0) -> bytes:
    return (
        torch.randint(
            256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
        )
        .numpy()
        .tobytes()
    )


def memory_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.numpy())


# What a connection carries


@on_both_loops_without_leaks
async def test_reply_brings_meta_and_payload(address: Address) -> None:
    echo = Echo()
    async with linked(echo, address) as (server, conn):
        reply = await conn.request(PUSH, b"meta", b"payload", timeout_s=PATIENCE_S)
        assert (reply.header.block, reply.header.is_reply) == (7, True)
        assert (reply.meta, reply.payload) == (b"meta", b"payload")
        empty = await conn.request(PULL, timeout_s=PATIENCE_S)
        assert (empty.meta, empty.payload) == (b"", None)
        assert server.address == conn.where


@pytest.mark.parametrize("checksum_payloads", [False, True])
@on_both_loops_without_leaks
async def test_large_payload_lands_in_the_tensors_own_memory(
    address: Address, checksum_payloads: bool
) -> None:
    on_server = torch.zeros(BIG // 4)

    class Block(Echo):
        def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
            assert bool(header.flags & FLAG_PAYLOAD_CHECKSUM) is checksum_payloads
            return memory_of(on_server).cast("B")

    gradient, pulled = torch.randn(BIG // 4), torch.zeros(BIG // 4)
    async with (
        listen(address, Block().connected, checksum_payloads=checksum_payloads) as server,
        await connect(
            server.address, timeout_s=PATIENCE_S, checksum_payloads=checksum_payloads
        ) as conn,
    ):
        reply = await conn.request(
            PUSH, payload=memory_of(gradient), into=memory_of(pulled), timeout_s=PATIENCE_S
        )
    assert torch.equal(on_server, gradient)
    assert torch.equal(pulled, gradient)
    assert reply.payload is not None
    assert torch.frombuffer(reply.payload, dtype=torch.float32).data_ptr() == pulled.data_ptr()


@on_both_loops_without_leaks
async def test_thousand_requests_in_flight_each_get_their_own_reply(address: Address) -> None:
    class Backwards(Inbox):
        def received(
            self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
        ) -> None:
            super().received(conn, header, meta, payload)
            if len(self.frames) == 1000:
                for request, its_meta, its_payload in reversed(self.frames):
                    conn.send(request.reply(), its_meta, its_payload)

    async with linked(Backwards(), address) as (_server, conn):
        replies = await asyncio.gather(
            *(
                conn.request(PULL, str(i).encode(), pattern(100, i), timeout_s=PATIENCE_S)
                for i in range(1000)
            )
        )
    assert [reply.meta for reply in replies] == [str(i).encode() for i in range(1000)]
    assert all(reply.payload == pattern(100, i) for i, reply in enumerate(replies))
    assert len({reply.header.request for reply in replies}) == 1000


@on_both_loops_without_leaks
async def test_payload_of_another_length_comes_in_fresh_memory(address: Address) -> None:
    into = bytearray(b"untouched")
    async with linked(Echo(), address) as (_server, conn):
        reply = await conn.request(PULL, payload=b"ten bytes!", into=into, timeout_s=PATIENCE_S)
    assert reply.payload == b"ten bytes!"
    assert into == b"untouched"


@on_both_loops_without_leaks
async def test_both_ends_may_ask(address: Address) -> None:
    at_server, at_client = Echo(), Echo()
    async with (
        at_server.listen(address) as server,
        await connect(server.address, timeout_s=PATIENCE_S, dispatcher=at_client) as conn,
    ):
        at_client.connected(conn)
        await eventually(lambda: bool(at_server.open))
        there = at_server.open[0].request(PULL, b"s", b"from server", timeout_s=PATIENCE_S)
        here = conn.request(PULL, b"c", b"from client", timeout_s=PATIENCE_S)
        from_client, from_server = await asyncio.gather(there, here)
        assert (from_client.payload, from_server.payload) == (b"from server", b"from client")
        at_server.open[0].send(Header(kind=Kind.CONTROL), b"unasked")
        await eventually(lambda: len(at_client.frames) == 2)
        assert at_client.frames[1][1] == b"unasked"
    assert at_client.closed_count == at_server.closed_count == 1


@on_both_loops_without_leaks
async def test_unwanted_payload_is_dropped_and_the_stream_goes_on(address: Address) -> None:
    class Picky(Echo):
        def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
            return None if meta == b"no" else super().destination(conn, header, meta)

    async with linked(Picky(), address) as (_server, conn):
        no, yes = await asyncio.gather(
            conn.request(PUSH, b"no", pattern(BIG), timeout_s=PATIENCE_S),
            conn.request(PUSH, b"yes", b"kept", timeout_s=PATIENCE_S),
        )
    assert (no.payload, yes.payload) == (None, b"kept")


@on_both_loops_without_leaks
async def test_tcp_sends_small_frames_at_once() -> None:
    async with linked(Echo(), ANY_PORT) as (_server, conn):
        sock = conn._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# Back-pressure and memory


@on_both_loops_without_leaks
async def test_slow_reader_holds_the_writer_back_and_gets_every_byte(address: Address) -> None:
    inbox = Inbox()
    async with linked(inbox, address) as (_server, conn):
        await conn.writable()
        await eventually(lambda: bool(inbox.open))
        inbox.open[0].pause_reading()
        sent = 0
        while conn._can_write.is_set():
            conn.send(PUSH, payload=pattern(BIG, sent))
            sent += 1
        waiting = asyncio.create_task(conn.writable())
        asked = asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        queued = conn._transport.get_write_buffer_size()
        assert not waiting.done()
        assert len(inbox.frames) < sent
        assert 0 < queued <= BIG + HEADER_SIZE
        inbox.open[0].resume_reading()
        await waiting
        await eventually(lambda: len(inbox.frames) == sent + 1)
        inbox.open[0].send(inbox.frames[-1][0].reply())
        await asked
    for number, (_, _, payload) in enumerate(inbox.frames[:-1]):
        assert payload == pattern(BIG, number)


class Answers(Inbox):
    """Answers each request with a payload of 1 MiB; ``asked`` counts them."""

    asked = 0

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        self.asked += 1
        conn.send(header.reply(), b"", bytes(1 << 20))


@on_both_loops_without_leaks
async def test_who_asks_on_and_takes_no_answer_is_not_read_from_until_it_does(
    address: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_UNTAKEN", 4 << 20)
    server = Answers()
    async with (
        listen(address, lambda _: server) as listener,
        await connect(listener.address, timeout_s=PATIENCE_S) as client,
    ):
        client.pause_reading()
        asking = [
            asyncio.create_task(client.request(PULL, timeout_s=PATIENCE_S)) for _ in range(20)
        ]
        await eventually(lambda: any(each._held_back for each in listener.connections))
        held_at = server.asked
        more = [asyncio.create_task(client.request(PULL, timeout_s=PATIENCE_S)) for _ in range(20)]
        await asyncio.sleep(0)
        client.resume_reading()
        replies = await asyncio.gather(*asking, *more)
        assert all(len(reply.payload or b"") == 1 << 20 for reply in replies)
        assert held_at < server.asked == 40
        assert not any(each._held_back for each in listener.connections)


@on_both_loops_without_leaks
async def test_memory_may_change_once_writable_has_returned(address: Address) -> None:
    inbox = Inbox()
    gradient = bytearray(BIG)
    async with linked(inbox, address) as (_server, conn):
        for number in range(1, 9):
            gradient[:] = bytes([number]) * BIG
            conn.send(PUSH, payload=gradient)
            await conn.writable()
        gradient[:] = b"\xff" * BIG
        await eventually(lambda: len(inbox.frames) == 8)
    assert [set(payload or b"") for _, _, payload in inbox.frames] == [{n} for n in range(1, 9)]


@on_both_loops_without_leaks
async def test_memory_is_lent_and_not_copied_until_the_kernel_has_taken_it(
    address: Address,
) -> None:
    inbox = Inbox()
    gradient = bytearray(BIG)
    async with linked(inbox, address) as (_server, conn):
        await eventually(lambda: bool(inbox.open))
        inbox.open[0].pause_reading()
        while conn._can_write.is_set():
            conn.send(PUSH, payload=gradient)
        if isinstance(asyncio.get_running_loop(), uvloop.Loop):
            with pytest.raises(BufferError):
                gradient.clear()
        inbox.open[0].resume_reading()
        await conn.writable()
        gradient.clear()


@on_both_loops_without_leaks
async def test_waiting_writers_go_in_order_and_queue_one_payload_at_a_time(
    address: Address,
) -> None:
    queued: list[int] = []

    class Watching(Echo):
        def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
            queued.append(client._transport.get_write_buffer_size())

    watching, payload = Watching(), bytes(1 << 20)
    async with linked(watching, address) as (_server, client):
        await asyncio.gather(
            *(
                client.request(PUSH, bytes([number]), payload, timeout_s=PATIENCE_S)
                for number in range(40)
            )
        )
    assert [meta[0] for _, meta, _ in watching.frames] == list(range(40))
    assert max(queued) <= HEADER_SIZE + 1 + len(payload)


@on_both_loops_without_leaks
async def test_request_cancelled_while_it_waits_to_write_is_never_sent() -> None:
    inbox = Inbox()
    async with linked(inbox, ANY_PORT) as (_server, conn):
        await eventually(lambda: bool(inbox.open))
        inbox.open[0].pause_reading()
        while conn._can_write.is_set():
            conn.send(PUSH, b"first", pattern(BIG))
        given_up = asyncio.create_task(conn.request(PUSH, b"second", timeout_s=PATIENCE_S))
        kept = asyncio.create_task(conn.request(PUSH, b"third", timeout_s=PATIENCE_S))
        await asyncio.sleep(0)
        given_up.cancel()
        inbox.open[0].resume_reading()
        await eventually(lambda: any(meta == b"third" for _, meta, _ in inbox.frames))
        inbox.open[0].send(inbox.frames[-1][0].reply())
        await kept
    assert {meta for _, meta, _ in inbox.frames} == {b"first", b"third"}


@pytest.mark.parametrize("ended_by", ["cancel", "timeout"])
@on_both_loops_without_leaks
async def test_reply_in_transit_is_never_written_after_its_request_ended(ended_by: str) -> None:
    into = bytearray(1000)
    async with raw_link() as (peer, conn):
        timeout_s = PATIENCE_S if ended_by == "cancel" else 0.5
        task = asyncio.create_task(conn.request(PULL, into=into, timeout_s=timeout_s))
        late = reply_to(await peer.receive(HEADER_SIZE), b"a" * 1000)
        await peer.send(late[:-500])
        await eventually(lambda: into[499] == ord("a") or task.done())
        if ended_by == "cancel":
            task.cancel()
        with pytest.raises((asyncio.CancelledError, PeerUnavailable)):
            await task
        into[:] = b"z" * 1000
        other = asyncio.create_task(conn.request(PULL, into=bytearray(10), timeout_s=PATIENCE_S))
        await peer.send(late[-500:])
        await peer.send(reply_to(await peer.receive(HEADER_SIZE), b"b" * 10))
        assert (await other).payload == b"b" * 10
    assert into == b"z" * 1000


@on_both_loops_without_leaks
async def test_reply_that_comes_after_its_request_was_cancelled_is_dropped() -> None:
    into = bytearray(b"z" * 1000)
    async with raw_link() as (peer, conn):
        task = asyncio.create_task(conn.request(PULL, into=into, timeout_s=PATIENCE_S))
        request = await peer.receive(HEADER_SIZE)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        other = asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S))
        await peer.send(reply_to(request, b"a" * 1000))
        await peer.send(reply_to(await peer.receive(HEADER_SIZE), b"b"))
        assert (await other).payload == b"b"
    assert into == b"z" * 1000


@on_both_loops_without_leaks
async def test_request_cancelled_as_its_connection_is_lost_ends_without_noise() -> None:
    tasks: list[asyncio.Task[object]] = []

    class CancelsWhenLost(Inbox):
        def closed(self, conn: Connection) -> None:
            tasks.pop().cancel()

    loud: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loud.append(context))
    async with raw_link(CancelsWhenLost()) as (peer, conn):
        tasks.append(asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S)))
        await peer.receive(HEADER_SIZE)
        peer.reset()
        await eventually(lambda: not tasks)
    gc.collect()
    assert loud == []


@on_both_loops_without_leaks
async def test_cancelled_request_does_not_take_the_next_replys_payload_with_it() -> None:
    """All in one read: a frame that makes the client cancel A, A's reply, half of B's reply."""
    tasks: list[asyncio.Task[object]] = []

    class CancelsA(Inbox):
        def received(
            self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
        ) -> None:
            tasks[0].cancel()

    dispatcher = CancelsA()
    async with raw_peer() as peer:
        conn, _ = await asyncio.gather(
            connect(peer.address, timeout_s=PATIENCE_S, dispatcher=dispatcher), peer.accept()
        )
        async with dispatcher.connected(conn).open[0]:
            into = [bytearray(10), bytearray(10)]
            tasks += [
                asyncio.create_task(conn.request(PULL, into=view, timeout_s=PATIENCE_S))
                for view in into
            ]
            requests = await peer.receive(2 * HEADER_SIZE)
            reply_a = reply_to(requests[:HEADER_SIZE], b"a" * 10)
            reply_b = reply_to(requests[HEADER_SIZE:], b"b" * 10)
            await peer.send(pack(Header(kind=Kind.CONTROL)) + reply_a + reply_b[:-5])
            with pytest.raises(asyncio.CancelledError):
                await tasks[0]
            await peer.send(reply_b[-5:])
            await tasks[1]
    assert into[1] == b"b" * 10


@on_both_loops_without_leaks
async def test_a_payload_of_many_pieces_is_one_payload(address: Address) -> None:
    echo, pieces = Echo(), [pattern(BIG), b"", pattern(100, 1), pattern(BIG // 2, 2)]
    into = bytearray(sum(map(len, pieces)))
    async with linked(echo, address) as (_server, conn):
        await conn.request(PUSH, b"meta", [*pieces], into=into, timeout_s=PATIENCE_S)
        small = await conn.request(PUSH, b"meta", [b"a", b"", b"bc"], timeout_s=PATIENCE_S)
    assert into == b"".join(pieces)
    assert small.payload == b"abc"


@on_both_loops_without_leaks
async def test_values_that_come_before_the_answer_land_where_they_were_asked_for(
    address: Address,
) -> None:
    class Serving(Inbox):
        def received(
            self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
        ) -> None:
            for block in (2, 1):
                conn.send(header.part(BlockId(block)), payload=pattern(BIG, block))
            conn.send(header.reply(), b"said", b"rest")

    blocks = {BlockId(block): memoryview(bytearray(BIG)) for block in (1, 2)}
    parts = Parts(blocks)
    async with linked(Serving(), address) as (_server, conn):
        reply = await conn.request(PULL, parts=parts, timeout_s=PATIENCE_S)
    assert (reply.meta, reply.payload) == (b"said", b"rest")
    assert parts.here == {1, 2}
    assert all(view == pattern(BIG, block) for block, view in blocks.items())


@pytest.mark.parametrize(
    ("blocks", "nbytes"), [((3,), 100), ((1, 1), 100), ((1,), 99)], ids=["other", "again", "size"]
)
@on_both_loops_without_leaks
async def test_a_value_that_was_not_asked_for_ends_the_connection(
    blocks: tuple[int, ...], nbytes: int
) -> None:
    class Serving(Inbox):
        def received(
            self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
        ) -> None:
            for block in blocks:
                conn.send(header.part(BlockId(block)), payload=bytes(nbytes))
            conn.send(header.reply())

    parts = Parts({BlockId(1): memoryview(bytearray(100))})
    async with linked(Serving(), ANY_PORT) as (_server, conn):
        with pytest.raises(WireError, match="part of"):
            await conn.request(PULL, parts=parts, timeout_s=PATIENCE_S)
        assert conn.closed


@on_both_loops_without_leaks
async def test_a_value_in_transit_is_never_written_after_its_request_ended() -> None:
    into = memoryview(bytearray(100_000))
    async with raw_link() as (peer, conn):
        parts = Parts({BlockId(1): into})
        task = asyncio.create_task(conn.request(PULL, parts=parts, timeout_s=PATIENCE_S))
        asked = unpack(await peer.receive(HEADER_SIZE), max_payload=0)
        part = msgspec.structs.replace(asked.part(BlockId(1)), payload_length=len(into))
        await peer.send(pack(part) + b"a" * 50_000)
        await eventually(lambda: into[49_999] == ord("a"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        again = asyncio.create_task(conn.request(PULL, timeout_s=PATIENCE_S))
        await peer.send(b"b" * 50_000 + reply_to(await peer.receive(HEADER_SIZE), b"fine"))
        assert (await again).payload == b"fine"
    assert into.tobytes() == b"a" * 50_000 + bytes(50_000)
    assert not parts.here
