"""Passes while they are in use: renewed by the daemon, and shown by every new connection."""

from __future__ import annotations

from pathlib import Path

from elasticps.core.ids import JobKey, NodeId, WorkerId
from elasticps.daemon.access import NodeAccess
from elasticps.daemon.config import Security
from elasticps.security.passes import PassVerifier
from elasticps.security.tokens import Role, create_token
from elasticps.wire.address import Address
from elasticps.wire.connection import Connection
from elasticps.wire.control import ControlEnd, tell
from elasticps.wire.control_messages import Control, Welcome, WorkerHello
from elasticps.wire.frame import Header
from elasticps.wire.listener import listen
from elasticps.wire.messages import HelloMeta, decode
from elasticps.wire.pool import ConnectionPool
from elasticps.worker.agent import Agent
from elasticps.worker.credentials import ToPeers
from tests.support.nodes import Authority
from tests.support.wire import Echo, eventually

WORKER, JOB = WorkerId(41), JobKey(7)


def access(directory: Path) -> NodeAccess:
    tokens = directory / "tokens.json"
    create_token(tokens, "root", Role.ADMIN)
    security = Security(tls=Authority(directory / "ca").node("n1"), tokens=tokens)
    return NodeAccess(security, "lab", NodeId("n1"))


class Daemon:
    """Welcomes a worker with a pass, and gives it another when told to."""

    def __init__(self, directory: Path) -> None:
        self.access = access(directory)
        self.heard: list[Connection] = []

    def connected(self, conn: Connection) -> ControlEnd:
        return ControlEnd(self._on_message, lambda _: None)

    def _on_message(self, conn: Connection, message: Control) -> None:
        assert isinstance(message, WorkerHello)
        self.heard.append(conn)
        given = self.access.of_worker(WORKER, JOB)
        welcome = Welcome(
            worker=WORKER,
            job=JOB,
            node=NodeId("n1"),
            cluster="lab",
            audit=False,
            block_bytes=1,
            access=given,
        )
        tell(conn, welcome)

    def renew(self) -> None:
        tell(self.heard[0], self.access.of_worker(WORKER, JOB))


async def test_each_new_connection_shows_the_newest_pass(tmp_path: Path) -> None:
    daemon, agent, peer = Daemon(tmp_path), Agent(), Echo()
    async with (
        listen(Address.unix(tmp_path / "c.sock"), daemon.connected) as control,
        listen(Address.unix(tmp_path / "p.sock"), peer.connected) as listening,
    ):
        await agent.connect(control.address, "n1.1")
        credentials = ToPeers(agent.current_access, lambda _: None)  # type: ignore[arg-type, return-value]
        pool = ConnectionPool("lab", str(WORKER), lambda _: listening.address, credentials)
        first = agent.current_access()
        (await pool.connection(WorkerId(1))).abort()
        daemon.renew()
        await eventually(lambda: agent.current_access() is not first)
        await pool.connection(WorkerId(1))
        shown = [decode(meta, HelloMeta).token for _, meta, _ in peer.frames]
        assert shown == [first.token, agent.current_access().token]
        verifier = PassVerifier(first.ca)
        earlier, later = (verifier.check(each, cluster="lab", caller="41") for each in shown)
        assert earlier.expires_unix < later.expires_unix
        await pool.aclose()
        await agent.aclose()


async def test_a_worker_that_was_welcomed_without_a_pass_shows_none(tmp_path: Path) -> None:
    peer = Echo()
    async with listen(Address.unix(tmp_path / "p.sock"), peer.connected) as listening:
        pool: ConnectionPool[int] = ConnectionPool("lab", "41", lambda _: listening.address)
        await pool.connection(1)
        header, meta, _ = peer.frames[0]
        assert isinstance(header, Header)
        assert decode(meta, HelloMeta).token == b""
        await pool.aclose()
