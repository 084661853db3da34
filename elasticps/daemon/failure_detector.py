"""Finds a killed daemon long before its lease runs out: its connection breaks, and then it refuses.

A node is its daemon: the kernel kills its children with it, and nobody else renews its lease.
A time-out, or silence, is never a proof: for a frozen or unreachable node the lease decides.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
import time
from bisect import bisect
from collections.abc import Collection
from dataclasses import dataclass
from urllib.parse import urlsplit

from elasticps.core.ids import NodeId
from elasticps.core.records import NodeRecord, decode
from elasticps.daemon.access import NodeAccess, connecting
from elasticps.daemon.config import is_loopback
from elasticps.daemon.view import ClusterView
from elasticps.errors import StoreError
from elasticps.store import Store, revoke

log = logging.getLogger(__name__)

SUCCESSORS = 3
"""How many daemons see each one's death, beside the leader: its own death, or both, are seen."""
CONNECT_TIMEOUT_S = 2.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0
REMEMBERED = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One life of another daemon, and where its API listens for as long as it lasts."""

    node: NodeId
    incarnation: str
    host: str
    port: int


def watched_by(me: NodeId, leader: NodeId | None, nodes: Collection[NodeId]) -> list[NodeId]:
    """Whom a daemon watches: the leader everyone, another the next few in the ring of names."""
    others = sorted(set(nodes) - {me})
    if me == leader:
        return others
    cut = bisect(others, me)
    return (others[cut:] + others[:cut])[:SUCCESSORS]


def peer_of(record: NodeRecord, machine: str) -> Peer | None:
    """How to tell this daemon's death from ``machine``; None: from there its address says nothing.

    A loopback or wildcard address leads back to the machine that connects.
    """
    try:
        parts = urlsplit(record.http)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    if not host or not port or (record.machine != machine and _leads_back(host)):
        return None
    return Peer(node=record.node, incarnation=record.incarnation, host=host, port=port)


class FailureDetector:
    """Holds a connection to each daemon that this one watches, as the view lists them.

    A daemon is dead when a connection to it stood, broke, and its address then refuses another:
    nobody listens there any more. Its lease is revoked, which removes its registration, its
    workers and its leadership in one step. If it lives after all, it notices and registers anew.
    """

    def __init__(
        self,
        store: Store,
        view: ClusterView,
        changed: asyncio.Condition,
        me: NodeId,
        machine: str,
        access: NodeAccess | None = None,
    ) -> None:
        self._access = access
        self._store = store
        self._view = view
        self._changed = changed
        self._me = me
        self._machine = machine
        self._watches: dict[Peer, asyncio.Task[None]] = {}
        self.found_dead: dict[tuple[NodeId, str], str] = {}
        """The lives of nodes that were found dead last, and how it was known."""

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as tasks, self._changed:
            while True:
                self._follow_view(tasks)
                await self._changed.wait()

    def _follow_view(self, tasks: asyncio.TaskGroup) -> None:
        wanted = self._wanted()
        for peer, watch in list(self._watches.items()):
            # One that is done has declared this peer dead, who may have come back since.
            if peer not in wanted or watch.done():
                self._watches.pop(peer).cancel()
        for peer in wanted:
            if peer not in self._watches:
                self._watches[peer] = tasks.create_task(
                    self._watch(peer), name=f"watch {peer.node}"
                )

    def _wanted(self) -> list[Peer]:
        nodes = self._view.nodes
        names = watched_by(self._me, self._view.leader, nodes)
        peers = (peer_of(nodes[name], self._machine) for name in names)
        return [peer for peer in peers if peer is not None]

    async def _watch(self, peer: Peer) -> None:
        """Return once the peer is declared dead.

        A refusal counts only after a connection: else an address that is wrong, or closed to this
        machine, would throw a living node out again and again.
        """
        stood, obstacle = False, ""
        pause_s = FIRST_PAUSE_S
        while True:
            began = time.monotonic()
            try:
                await self._connected_until_closed(peer)
                stood, obstacle = True, ""
            except (OSError, UnicodeError) as error:
                refused = isinstance(error, ConnectionRefusedError)
                if stood and refused and await self._declared_dead(peer, str(error)):
                    return
                if repr(error) != obstacle:
                    obstacle = repr(error)
                    log.info("node=%s its lease alone tells if it lives: %s", peer.node, obstacle)
            if time.monotonic() - began > LONGEST_PAUSE_S:
                pause_s = FIRST_PAUSE_S
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _declared_dead(self, peer: Peer, refusal: str) -> bool:
        """Revoke the lease of this life of the node; False when etcd does not say."""
        log.warning(
            "node=%s incarnation=%s is dead: its connection broke, and %s port %d refuses: %s",
            peer.node,
            peer.incarnation,
            peer.host,
            peer.port,
            refusal,
        )
        self._remember(peer)
        key = self._view.keys.node(peer.node)
        try:
            held = await self._store.get(key)
            if held is None or decode(held.value, NodeRecord, key).incarnation != peer.incarnation:
                return True
            if held.lease:
                await revoke(self._store, held.lease)
        except StoreError as error:
            log.warning("node=%s its lease is not revoked: %s", peer.node, error)
            return False
        return True

    def _remember(self, peer: Peer) -> None:
        why = f"its connection broke, and {peer.host} port {peer.port} refuses another"
        self.found_dead[peer.node, peer.incarnation] = why
        while len(self.found_dead) > REMEMBERED:
            del self.found_dead[next(iter(self.found_dead))]

    async def _connected_until_closed(self, peer: Peer) -> None:
        """Hold a connection until the other end closes it. Raises OSError when none can be made."""
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            reader, writer = await asyncio.open_connection(
                peer.host, peer.port, **connecting(self._access, peer.node)
            )
        try:
            # Nothing is ever sent: a firewall between would forget the connection.
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            with contextlib.suppress(OSError):
                while await reader.read(4096):
                    continue
        finally:
            writer.transport.abort()


def _leads_back(host: str) -> bool:
    try:
        return is_loopback(host) or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
