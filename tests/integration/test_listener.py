"""Listening and closing over real sockets: addresses, socket files, and ends that leave nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import stat
from pathlib import Path
from typing import Any

import pytest

from elasticps.errors import PeerUnavailable, UsageError
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import Header, Kind, pack
from elasticps.wire.listener import listen
from tests.support.processes import open_fds
from tests.support.wire import (
    PATIENCE_S,
    Echo,
    Inbox,
    eventually,
    linked,
    on_both_loops_without_leaks,
    raw_link,
    raw_stream,
)

ANY_PORT = Address.tcp("127.0.0.1", 0)
PULL = Header(kind=Kind.PULL)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "server.sock"


async def echoes(address: Address) -> bool:
    async with await connect(address, timeout_s=PATIENCE_S) as conn:
        return (await conn.request(PULL, b"hello", timeout_s=PATIENCE_S)).meta == b"hello"


@on_both_loops_without_leaks
async def test_port_zero_becomes_the_real_port() -> None:
    async with Echo().listen(ANY_PORT) as server:
        assert server.address.port > 0
        assert await echoes(server.address)


@on_both_loops_without_leaks
async def test_ipv6_loopback_serves() -> None:
    async with Echo().listen(Address.parse("tcp:[::1]:0")) as server:
        assert await echoes(server.address)


@on_both_loops_without_leaks
async def test_name_of_a_host_serves() -> None:
    async with Echo().listen(Address.parse("tcp:localhost:0")) as server:
        assert server.address.host == "localhost"
        assert await echoes(server.address)


@on_both_loops_without_leaks
async def test_socket_file_is_private_and_gone_afterwards(path: Path) -> None:
    async with Echo().listen(Address.unix(path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await echoes(server.address)
    assert not path.exists()


@on_both_loops_without_leaks
async def test_stale_socket_file_is_replaced(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    async with Echo().listen(Address.unix(path)) as server:
        assert await echoes(server.address)
    assert not path.exists()


@on_both_loops_without_leaks
async def test_live_socket_file_is_left_alone(path: Path) -> None:
    async with Echo().listen(Address.unix(path)) as server:
        with pytest.raises(UsageError, match="another process listens"):
            async with Echo().listen(Address.unix(path)):
                pass
        assert await echoes(server.address)


@on_both_loops_without_leaks
async def test_file_that_is_no_socket_is_left_alone(path: Path) -> None:
    path.write_text("precious")
    with pytest.raises(UsageError, match="no socket"):
        async with Echo().listen(Address.unix(path)):
            pass
    assert path.read_text() == "precious"


@on_both_loops_without_leaks
async def test_closing_leaves_a_successors_socket_file_alone(path: Path) -> None:
    async with Echo().listen(Address.unix(path)):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
    assert path.is_socket()


@on_both_loops_without_leaks
async def test_missing_directory_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot listen"):
        async with Echo().listen(Address.unix(tmp_path / "none" / "server.sock")):
            pass


@on_both_loops_without_leaks
async def test_taken_port_is_a_usage_error() -> None:
    async with Echo().listen(ANY_PORT) as server:
        with pytest.raises(UsageError, match="cannot listen"):
            async with Echo().listen(server.address):
                pass


@pytest.mark.parametrize("address", ["tcp:127.0.0.1:1", "unix:/nonexistent/server.sock"])
@on_both_loops_without_leaks
async def test_nobody_there_is_peer_unavailable(address: str) -> None:
    with pytest.raises(PeerUnavailable) as caught:
        await connect(Address.parse(address), timeout_s=PATIENCE_S)
    assert caught.value.where == address


@on_both_loops_without_leaks
async def test_unanswered_connect_ends_in_time_and_leaks_nothing() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = Address.tcp(*full.getsockname())
        taken: list[Connection] = []

        async def fill_the_backlog() -> None:
            while len(taken) < 100:
                taken.append(await connect(address, timeout_s=0.2))

        with pytest.raises(PeerUnavailable, match="in time"):
            await fill_the_backlog()
        for conn in taken:
            conn.abort()


@on_both_loops_without_leaks
async def test_leaving_closes_every_connection() -> None:
    inbox = Inbox()
    async with inbox.listen(ANY_PORT) as server:
        conns = [await connect(server.address, timeout_s=PATIENCE_S) for _ in range(10)]
        tasks = [asyncio.create_task(c.request(PULL, timeout_s=PATIENCE_S)) for c in conns]
        await eventually(lambda: len(inbox.frames) == 10)
    assert (inbox.closed_count, server.connections) == (10, set())
    for task in tasks:
        with pytest.raises(PeerUnavailable):
            await task
    for conn in conns:
        await conn.aclose()


@on_both_loops_without_leaks
async def test_queued_replies_are_sent_before_the_end() -> None:
    class AnswersAndCloses(Echo):
        def received(
            self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
        ) -> None:
            super().received(conn, header, meta, payload)
            closing.append(asyncio.create_task(conn.aclose()))

    closing: list[asyncio.Task[None]] = []
    async with linked(AnswersAndCloses(), ANY_PORT) as (_server, conn):
        payload = bytes(8 << 20)
        reply = await conn.request(
            PULL, payload=payload, max_reply=len(payload), timeout_s=PATIENCE_S
        )
    assert reply.payload == payload
    await asyncio.gather(*closing)


@on_both_loops_without_leaks
async def test_closing_is_idempotent_and_cannot_hang_on_a_peer_that_does_not_read() -> None:
    async with raw_link() as (_peer, conn):
        while conn._can_write.is_set():
            conn.send(PULL, payload=bytes(1 << 20))
        await conn.aclose(timeout_s=0.05)
        await conn.aclose()
        conn.abort()
        await conn.aclose()


@on_both_loops_without_leaks
async def test_cancelled_close_still_closes() -> None:
    async with raw_link() as (_peer, conn):
        while conn._can_write.is_set():
            conn.send(PULL, payload=bytes(1 << 20))
        closing = asyncio.create_task(conn.aclose())
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        await asyncio.wait_for(conn._lost.wait(), PATIENCE_S)


@on_both_loops_without_leaks
async def test_refused_connection_is_closed_and_told() -> None:
    told = []

    def refuse(conn: Connection) -> Echo:
        raise UsageError("too many connections", limit="0")

    async with (
        listen(ANY_PORT, refuse, on_error=lambda _, error: told.append(error)) as server,
        raw_stream(server.address),
    ):
        await eventually(lambda: bool(told))
    assert [error.what for error in told] == ["too many connections"]
    assert server.wire_errors == 0


@on_both_loops_without_leaks
async def test_dispatchers_bug_is_loud_and_closes_only_its_connection() -> None:
    class Buggy(Echo):
        def received(
            self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
        ) -> None:
            if meta == b"bug":
                raise RuntimeError("a bug")
            super().received(conn, header, meta, payload)

    loud: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: loud.append(context))
    buggy = Buggy()
    async with (
        linked(buggy, ANY_PORT) as (server, conn),
        await connect(server.address, timeout_s=PATIENCE_S) as other,
    ):
        with pytest.raises(PeerUnavailable):
            await conn.request(PULL, b"bug", timeout_s=PATIENCE_S)
        await other.request(PULL, timeout_s=PATIENCE_S)
    assert [str(context["exception"]) for context in loud] == ["a bug"]


@on_both_loops_without_leaks
async def test_connections_of_a_flood_all_close_with_the_listener() -> None:
    """Some are accepted just before the end: they too must be gone, whatever their state."""
    inbox = Inbox()
    async with inbox.listen(ANY_PORT) as server:
        socks = [socket.socket() for _ in range(50)]
        for sock in socks:
            sock.setblocking(False)
            sock.connect_ex((server.address.host, server.address.port))
        await eventually(lambda: bool(inbox.open))
    await eventually(lambda: not server.connections)
    for sock in socks:
        sock.close()
    assert inbox.open == []


@on_both_loops_without_leaks
async def test_hundred_lives_leave_no_file_descriptor(path: Path) -> None:
    before = open_fds()
    for address in (ANY_PORT, Address.unix(path)):
        for _ in range(50):
            async with Echo().listen(address) as server:
                assert await echoes(server.address)
    await eventually(lambda: open_fds() <= before)


@on_both_loops_without_leaks
async def test_bytes_that_arrive_after_an_error_change_nothing() -> None:
    inbox = Inbox()
    async with inbox.listen(ANY_PORT) as server, raw_stream(server.address) as stream:
        stream.write(b"x" * 88 + pack(Header(kind=Kind.PUSH)) * 100)
        await eventually(lambda: inbox.closed_count == 1)
    assert (server.wire_errors, inbox.frames) == (1, [])


@pytest.mark.parametrize("turns", range(5))
async def test_who_comes_while_a_listener_ends_is_not_left_with_nobody(
    turns: int, path: Path
) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(PATIENCE_S)
        async with listen(Address.unix(path), lambda _: None):
            client.connect(str(path))
            for _ in range(turns):
                await asyncio.sleep(0)
        with contextlib.suppress(ConnectionResetError):
            assert await asyncio.to_thread(client.recv, 1) == b""
