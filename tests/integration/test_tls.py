"""Connections by TLS: who gets in, who does not, and that they carry what plain ones do."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import ssl
from pathlib import Path

import pytest

from elasticps.core.ids import NodeId
from elasticps.errors import PeerUnavailable, UsageError
from elasticps.security.authority import self_signed
from elasticps.security.tls import NodeTls, Secured, TlsFiles, showing, trusting
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection, connect
from elasticps.wire.frame import Header, Kind
from elasticps.wire.listener import listen
from elasticps.wire.peer_process import PeerProcess
from tests.support.loops import on_both_loops
from tests.support.nodes import Authority
from tests.support.wire import PATIENCE_S, Echo, eventually

ANY_PORT = Address.tcp("127.0.0.1", 0)
BIG = 9 << 20
N1 = NodeId("n1")
PULL, PUSH = Header(kind=Kind.PULL), Header(kind=Kind.PUSH)


def pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(BIG)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


async def greeted(address: Address, secured: Secured | None) -> Connection:
    """A connection over which a request has been answered."""
    conn = await connect(address, timeout_s=PATIENCE_S, secured=secured)
    try:
        await conn.request(PULL, timeout_s=PATIENCE_S)
    except BaseException:
        conn.abort()
        raise
    return conn


@on_both_loops
async def test_both_ends_know_whom_they_speak_to(authority: Authority) -> None:
    server, client = NodeTls(authority.node("n1")), NodeTls(authority.node("n2"))
    echo = Echo()
    async with (
        listen(ANY_PORT, echo.connected, tls=server.server()) as listening,
        await greeted(listening.address, client.to_node(N1)) as conn,
    ):
        assert (conn.peer_node(), echo.open[0].peer_node()) == ("n1", "n2")
        cipher = conn._transport.get_extra_info("cipher")
        assert cipher[1] == "TLSv1.3"


@on_both_loops
async def test_large_payloads_both_ways_at_a_time_arrive_whole(authority: Authority) -> None:
    server, client = NodeTls(authority.node("n1")), NodeTls(authority.node("n2"))
    async with (
        listen(ANY_PORT, Echo().connected, tls=server.server()) as listening,
        await connect(listening.address, timeout_s=PATIENCE_S, secured=client.to_node(N1)) as conn,
    ):

        async def there_and_back(seed: int) -> None:
            sent, back = pattern(seed), bytearray(BIG)
            for _ in range(3):
                await conn.request(PUSH, payload=sent, into=back, timeout_s=PATIENCE_S)
                assert back == sent

        await asyncio.gather(*(there_and_back(seed) for seed in range(4)))


@on_both_loops
async def test_a_sender_may_change_its_memory_once_it_is_writable(authority: Authority) -> None:
    server, client = NodeTls(authority.node("n1")), NodeTls(authority.node("n2"))
    echo = Echo()
    async with (
        listen(ANY_PORT, echo.connected, tls=server.server()) as listening,
        await greeted(listening.address, client.to_node(N1)) as conn,
    ):
        memory = bytearray(pattern(1))
        asking = asyncio.create_task(
            conn.request(PUSH, payload=memory, max_reply=BIG, timeout_s=PATIENCE_S)
        )
        await asyncio.sleep(0)
        await conn.writable()
        memory[:] = bytes(BIG)
        assert (await asking).payload == pattern(1)


@on_both_loops
async def test_a_slow_reader_holds_the_writer_up(authority: Authority) -> None:
    server, client = NodeTls(authority.node("n1")), NodeTls(authority.node("n2"))
    echo = Echo()
    async with (
        listen(ANY_PORT, echo.connected, tls=server.server()) as listening,
        await greeted(listening.address, client.to_node(N1)) as conn,
    ):
        echo.open[0].pause_reading()

        async def send_much() -> None:
            for _ in range(20):
                await conn.writable()
                conn.send(PUSH.reply(), payload=bytes(BIG))

        sending = asyncio.create_task(send_much())
        done, _ = await asyncio.wait({sending}, timeout=0.5)
        assert not done
        echo.open[0].resume_reading()
        await sending


@on_both_loops
async def test_nobody_without_the_authoritys_certificate_is_a_node(
    authority: Authority, tmp_path: Path
) -> None:
    server = NodeTls(authority.node("n1"))
    stranger = Authority(tmp_path / "other").node("n2")
    posing = NodeTls(TlsFiles(ca=authority.ca, cert=stranger.cert, key=stranger.key))
    without = Secured(context=trusting(authority.ca.read_bytes()), name="n1")
    echo = Echo()
    async with listen(ANY_PORT, echo.connected, tls=server.server()) as listening:
        with pytest.raises(PeerUnavailable):
            await greeted(listening.address, posing.to_node(N1))
        with pytest.raises(PeerUnavailable):
            await greeted(listening.address, None)
        assert not echo.open
        async with await greeted(listening.address, without):
            assert echo.open[0].peer_node() is None


@on_both_loops
async def test_a_listener_that_is_not_the_node_asked_for_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    client = NodeTls(authority.node("n2"))
    impostors = (
        NodeTls(authority.node("n3")).server(),
        NodeTls(Authority(tmp_path / "other").node("n1")).server(),
        showing(*self_signed("n1", days=1)),
        None,
    )
    for impostor in impostors:
        async with listen(ANY_PORT, Echo().connected, tls=impostor) as listening:
            with pytest.raises(PeerUnavailable):
                async with asyncio.timeout(PATIENCE_S):
                    await connect(listening.address, timeout_s=1.0, secured=client.to_node(N1))


@on_both_loops
async def test_older_tls_is_refused(authority: Authority) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.load_verify_locations(cafile=authority.ca)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    server = NodeTls(authority.node("n1"))
    async with listen(ANY_PORT, Echo().connected, tls=server.server()) as listening:
        with pytest.raises(PeerUnavailable):
            await greeted(listening.address, Secured(context=old, name="n1"))
        old.maximum_version = ssl.TLSVersion.TLSv1_3
        async with await greeted(listening.address, Secured(context=old, name="n1")):
            pass


@on_both_loops
async def test_certificates_that_change_are_taken_up_without_a_restart(
    authority: Authority, tmp_path: Path
) -> None:
    """A whole new authority, first trusted beside the old one, as a rotation does it."""
    files = authority.node("n1")
    fresh = Authority(tmp_path / "fresh")
    newer, client = fresh.node("n1"), NodeTls(fresh.node("n2"))
    server = NodeTls(files)
    async with listen(ANY_PORT, Echo().connected, tls=server.server()) as listening:
        with pytest.raises(PeerUnavailable):
            await greeted(listening.address, client.to_node(N1))
        files.cert.write_text("half a file")
        old = NodeTls(TlsFiles(ca=files.ca, cert=(o := authority.node("n4")).cert, key=o.key))
        async with await greeted(listening.address, old.to_node(N1)) as kept:
            for ours, theirs in (
                (files.ca, newer.ca),
                (files.cert, newer.cert),
                (files.key, newer.key),
            ):
                shutil.copy(theirs, ours)
            async with await greeted(listening.address, client.to_node(N1)) as conn:
                assert conn.peer_node() == "n1"
            await kept.request(PULL, timeout_s=PATIENCE_S)
        with pytest.raises(PeerUnavailable):
            await greeted(
                listening.address,
                NodeTls(
                    TlsFiles(ca=authority.directory / "ca.pem", cert=o.cert, key=o.key)
                ).to_node(N1),
            )


@on_both_loops
async def test_silence_in_the_handshake_is_cut_off(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("elasticps.wire.listener.HANDSHAKE_TIMEOUT_S", 0.2)
    server, echo = NodeTls(authority.node("n1")), Echo()
    async with listen(ANY_PORT, echo.connected, tls=server.server()) as listening:
        loop = asyncio.get_running_loop()
        with socket.create_connection((listening.address.host, listening.address.port)) as silent:
            silent.setblocking(False)
            async with asyncio.timeout(PATIENCE_S):
                assert await loop.sock_recv(silent, 1) == b""
    assert not echo.open


async def test_files_that_cannot_prove_the_node_are_refused_at_the_start(
    authority: Authority, tmp_path: Path
) -> None:
    files = authority.node("n1")
    files.check("n1")
    with pytest.raises(UsageError, match="not one of node n2"):
        files.check("n2")
    files.key.chmod(0o644)
    with pytest.raises(UsageError, match="others may read"):
        files.check("n1")
    files.key.chmod(0o600)
    other = Authority(tmp_path / "other").node("n1")
    with pytest.raises(UsageError, match="not signed by"):
        TlsFiles(ca=files.ca, cert=other.cert, key=other.key).check("n1")
    with pytest.raises(UsageError, match="cannot be used together"):
        TlsFiles(ca=files.ca, cert=files.cert, key=other.key).check("n1")
    with pytest.raises(UsageError, match="cannot be read"):
        TlsFiles(ca=files.ca, cert=tmp_path / "none.pem", key=files.key).check("n1")


async def test_peer_process_is_the_kernels_word(tmp_path: Path) -> None:
    echo = Echo()
    async with (
        listen(Address.unix(tmp_path / "s.sock"), echo.connected) as listening,
        await greeted(listening.address, None) as conn,
    ):
        await eventually(lambda: bool(echo.open))
        this = PeerProcess(pid=os.getpid(), user=os.geteuid())
        assert echo.open[0].peer_process() == conn.peer_process() == this
