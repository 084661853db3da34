"""A simulated shard server: ``server/session.py`` and ``server/table.py`` in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from elasticps.core.ids import LEDGER, BlockId, ServerId, WorkerId, node_of
from elasticps.core.plan import Entry
from elasticps.core.records import CaughtUpRow
from elasticps.core.replication import Check, Role
from elasticps.sim.block import Block
from elasticps.sim.group import Group
from elasticps.sim.hosting import Hosted
from elasticps.sim.ledger import LedgerHost
from elasticps.sim.messages import STATUS_OF, Kind, Message, Request, Status
from elasticps.sim.network import LOCAL_DELAY
from elasticps.sim.process import Process

if TYPE_CHECKING:
    from elasticps.sim.daemon import Daemon
    from elasticps.sim.links import News
    from elasticps.sim.world import World


class Server(Process):
    """One life of a shard server. ``deadline`` is its node's lease, by its own clock."""

    def __init__(self, world: World, name: ServerId, daemon: Daemon) -> None:
        super().__init__(world.clock, name, node_of(name))
        self.id = name
        self.world = world
        self.daemon = daemon
        self.job = world.job
        self.network = world.network
        self.check = world.check
        self.deadline = 0
        self.listed: dict[ServerId, object] = {}
        self.hosted: dict[BlockId, Hosted] = {}
        self._alive: tuple[tuple[WorkerId, ...], int] | None = None
        self._telling = False

    # -- the daemon's word ----------------------------------------------------------------------

    def serve_until(self, deadline: int) -> None:
        self.deadline = deadline

    def hear(self, news: News) -> None:
        if news.servers is not None:
            self.listed = news.servers
            self.network.forget(self, self.listed)
        if news.entries is not None:
            for entry in news.entries:
                if self.id in entry.servers or entry.block in self.hosted:
                    self._adopt(entry)
            self.promises_changed()
        if news.alive is not None:
            self._alive = news.alive
            ledger = self.hosted.get(LEDGER)
            if isinstance(ledger, LedgerHost):
                ledger.observe(*news.alive)

    def _adopt(self, entry: Entry) -> None:
        hosted = self.hosted.get(entry.block)
        if hosted is None:
            made = LedgerHost(self) if entry.block == LEDGER else Block(self, entry.block)
            hosted = self.hosted[entry.block] = made
        hosted.adopt(entry)
        if hosted.replication.role is Role.NONE:
            del self.hosted[entry.block]
            return
        self.check.adopted(hosted)
        if isinstance(hosted, LedgerHost) and self._alive is not None:
            hosted.observe(*self._alive)

    # -- requests -------------------------------------------------------------------------------

    @property
    def lease_expired(self) -> bool:
        return self.clock.now >= self.deadline

    def receive(self, connection: Any, number: int, message: Message) -> None:
        request = Request(self.network, connection, number, message)
        hosted = self.hosted.get(message.block)
        if message.kind is Kind.GROUP and not self.lease_expired:
            self._group(request)
        elif message.kind is Kind.OP or message.kind is Kind.SNAPSHOT:
            if hosted is None:
                request.answer(Status.BEHIND)
            elif message.kind is Kind.OP:
                hosted.take_op(request)
            else:
                hosted.take_snapshot(request)
        elif message.kind is Kind.PROOF:
            proven = isinstance(hosted, Block) and hosted.take_proof(message)
            request.answer(Status.OK if proven else Status.CONFLICT)
        elif self.lease_expired:
            request.answer(Status.NOT_SERVING)
        elif hosted is None:
            request.answer(Status.UNKNOWN)
        else:
            self._client(hosted, request)

    def _group(self, request: Request) -> None:
        """Make each piece's request as if it had come by itself; they are answered together."""
        group = Group(request, request.message.body)
        for piece in group.requests:
            hosted = self.hosted.get(piece.message.block)
            if hosted is None:
                piece.answer(Status.UNKNOWN)
            else:
                self._client(hosted, piece)
        group.begun()

    def _client(self, hosted: Hosted, request: Request) -> None:
        check = hosted.replication.check(request.message.epoch)
        if check is not Check.OK:
            request.answer(STATUS_OF[check])
            return
        self.check.admitted(hosted)
        assert isinstance(hosted, LedgerHost | Block)
        hosted.ask(request)

    # -- reports --------------------------------------------------------------------------------

    def promises_changed(self) -> None:
        if not self._telling:
            self._telling = True
            self.later(0, self._tell_promises)

    def _tell_promises(self) -> None:
        self._telling = False
        rows: list[CaughtUpRow] = []
        for hosted in self.hosted.values():
            rows += hosted.promises()
        self.clock.after(
            LOCAL_DELAY, self.daemon.run, self.daemon.reports.promised, self, tuple(rows)
        )
