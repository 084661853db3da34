"""The data-plane client: one request to a block's primary, wherever it is by now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import msgspec

from elasticps.core.commands import Answer, Attend, Command, Question, Refused
from elasticps.core.ids import LEDGER, BlockId, JobKey, Round, Seq, ServerId, WorkerId
from elasticps.errors import BlockUnavailable, JobFailed, PeerUnavailable
from elasticps.wire.connection import Connection
from elasticps.wire.control_messages import PlanRow, PlanUpdate
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.inflight import Reply
from elasticps.wire.messages import Place, PullMeta, PushMeta, RefusalMeta, decode, encode
from elasticps.wire.pool import ConnectionPool
from elasticps.wire.transports import SHM, TRANSPORTS_VARIABLE, UNIX
from elasticps.worker.agent import Agent
from elasticps.worker.coded_pull import CodedPull
from elasticps.worker.credentials import ToServers
from elasticps.worker.group_calls import GroupCalls
from elasticps.worker.round_calls import RoundCalls
from elasticps.worker.shared_memory import SharedMemory

REQUEST_TIMEOUT_S = 30.0
HELD_TIMEOUT_S = 600.0
"""For an answer that waits for other workers, who may compute for long."""
BLOCK_DEADLINE_S = 60.0
"""How long a block may be without a primary that answers before the worker gives up."""
FIRST_RETRY_S = 0.002
LAST_RETRY_S = 0.25
MAX_STATE_BYTES = 1 << 30

_FINAL = frozenset({Status.OK, Status.STALE_GENERATION, Status.CONFLICT})
_answers = msgspec.msgpack.Decoder(Answer)


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A request but for its epoch, which each attempt takes from the newest plan.

    The payload's and ``into``'s memory must stay as they are until the call returns. Where the
    server has this worker's regions it is told of ``place`` instead.
    """

    kind: Kind
    block: BlockId
    meta: bytes = b""
    payload: memoryview | None = None
    into: memoryview | None = None
    seq: Seq = Seq(0)
    round: Round = Round(0)
    flags: int = 0
    deadline_s: float | None = BLOCK_DEADLINE_S
    timeout_s: float = REQUEST_TIMEOUT_S
    place: Place | None = None
    coded: CodedPull | None = None
    """How to read ``into`` by its difference, where it is asked for by socket."""

    @property
    def meta_with_place(self) -> bytes:
        """What is sent to a server that has this worker's regions, of a push or a pull."""
        meta = decode(self.meta, PushMeta if self.kind is Kind.PUSH else PullMeta)
        return encode(msgspec.structs.replace(meta, place=self.place))


class Client:
    """Asks primaries; follows the plan from one to the next with the same sequence number."""

    def __init__(self, agent: Agent, cluster: str, job: JobKey, worker: WorkerId) -> None:
        self._agent = agent
        self.worker = worker
        self._job = job
        self._spans = agent.spans
        credentials = ToServers(agent.current_access) if agent.access else None
        self._pool = ConnectionPool(cluster, str(worker), agent.address, credentials)
        # What waits for a server that is gone learns it at once, not when its time is up.
        agent.on_servers = self._pool.forget_unlisted
        agent.on_plan = self._give_up_deposed
        self.groups = GroupCalls(agent, self._pool, job, worker)
        self.rounds = RoundCalls(self.groups)
        self._asking: dict[BlockId, dict[asyncio.Timeout, ServerId]] = {}

    @property
    def shared(self) -> SharedMemory | None:
        """This worker's regions, once it has any."""
        return self.groups.shared

    @shared.setter
    def shared(self, shared: SharedMemory) -> None:
        self.groups.shared = shared

    @property
    def traffic(self) -> dict[str, int]:
        """Bytes sent and received, by transport."""
        by = self._pool.traffic.by_transport
        return {name: each.sent + each.received for name, each in by.items()}

    async def call(self, call: Call) -> Reply:
        """Ask the block's primary until it gives an answer that is for the caller to judge.

        Those are OK, STALE_GENERATION and CONFLICT. Raises BlockUnavailable when no
        primary gave one within ``deadline_s``, JobFailed when the request was refused.
        """
        started, retry_s = time.monotonic(), FIRST_RETRY_S
        while True:
            row = await self._row(call)
            reason, reply = await self._attempt(call, row)
            if reply is not None and reply.header.status in _FINAL:
                return reply
            if reply is not None and reply.header.status is Status.REFUSED:
                raise JobFailed(decode(reply.meta, RefusalMeta).reason, where=row.primary)
            if call.deadline_s is not None and time.monotonic() - started > call.deadline_s:
                raise BlockUnavailable(
                    f"block {call.block} has had no primary that answers: {reason}",
                    where=row.primary,
                    limit=f"{call.deadline_s} s",
                )
            await self._newer_row(row, retry_s)
            retry_s = min(2 * retry_s, LAST_RETRY_S)

    async def _row(self, call: Call) -> PlanRow:
        """The block's entry in the plan; the leader may yet have to make it."""
        return await self._agent.until(lambda: self._agent.row(call.block), None)

    async def _newer_row(self, row: PlanRow, most_s: float) -> None:
        """Wait for the plan to change this block, at most ``most_s``: it may be about to."""

        def changed() -> bool:
            known = self._agent.row(row.block)
            return known is not None and known.epoch > row.epoch

        try:
            await self._agent.until(changed, most_s)
        except TimeoutError:
            return

    def is_asking(self, block: BlockId) -> bool:
        """Is a server being asked for the block now?"""
        return bool(self._asking.get(block)) or self.groups.is_asking(block)

    def _give_up_deposed(self, update: PlanUpdate) -> None:
        """Do not wait for a primary that is none any more: it may not know, and never answer."""
        now = asyncio.get_running_loop().time()
        for row in update.rows:
            for scope, asked in self._asking.get(row.block, {}).items():
                if asked != row.primary and not scope.expired():
                    scope.reschedule(now)
        self.groups.give_up_deposed(update)

    async def _attempt(self, call: Call, row: PlanRow) -> tuple[str, Reply | None]:
        """One try: the reply, or why there is none."""
        asking = self._asking.setdefault(call.block, {})
        scope = asyncio.timeout(None)
        try:
            async with scope:
                asking[scope] = row.primary
                return await self._asked(call, row)
        except TimeoutError:
            return f"{row.primary} leads the block no more", None
        finally:
            asking.pop(scope, None)

    async def _asked(self, call: Call, row: PlanRow) -> tuple[str, Reply | None]:
        header = Header(
            call.kind,
            flags=call.flags,
            job=self._job,
            plan_epoch=row.epoch,
            block=call.block,
            worker=self.worker,
            seq=call.seq,
            round=call.round,
        )
        try:
            connection = await self._pool.connection(row.primary)
            began_ns = self._spans.begin()
            reply, via = await self._sent(connection, header, call)
        except PeerUnavailable as error:
            return str(error), None
        if began_ns and call.kind is not Kind.LEDGER:
            name, sent = call.kind.name.lower(), call.payload or call.into or b""
            nbytes, number = len(sent), call.round
            self._spans.end(name, began_ns, block=call.block, nbytes=nbytes, via=via, round_=number)
        return f"{row.primary} answered {reply.header.status.name}", reply

    async def _sent(self, connection: Connection, header: Header, call: Call) -> tuple[Reply, str]:
        """The answer to the request, sent by shared memory where that can be, otherwise with its
        payload; and which transport that was."""
        shared, into = self.shared, call.into
        if shared is not None and call.place is not None:
            if await shared.ready(connection, call.block):
                return await self._by_place(shared, connection, header, call), SHM
            if into is not None and shared.is_abandoned(call.block):
                into = memoryview(bytearray(into.nbytes))
        if call.coded is not None and into is call.into:
            reply = await self._difference(connection, header, call, call.coded)
            if reply is not None:
                return reply, connection.where.transport
        reply = await connection.request(
            header,
            call.meta,
            call.payload,
            into=into,
            max_reply=MAX_STATE_BYTES,
            timeout_s=call.timeout_s,
        )
        rescued = into is not None and into is not call.into
        if shared is not None and into is not None and rescued:
            shared.rescue(call.block, into if reply.header.status is Status.OK else None)
        return reply, connection.where.transport

    async def _difference(
        self, connection: Connection, header: Header, call: Call, coded: CodedPull
    ) -> Reply | None:
        """The answer, taken; None where the value has to be read whole."""
        most = coded.value.nbytes
        reply = await connection.request(
            header, coded.meta(), max_reply=most, timeout_s=call.timeout_s
        )
        taken = reply.header.status is not Status.OK or coded.take(reply)
        return reply if taken else None

    async def _by_place(
        self, shared: SharedMemory, connection: Connection, header: Header, call: Call
    ) -> Reply:
        assert call.place is not None
        if call.kind is Kind.PUSH:
            shared.lend(call.block)
        try:
            reply = await connection.request(header, call.meta_with_place, timeout_s=call.timeout_s)
        except BaseException:
            if not connection.ended_by_peer:
                shared.abandoned(call.place, call.block, connection)
            raise
        shm = self._pool.traffic.by_transport[SHM]
        if call.kind is Kind.PUSH:
            shm.sent += call.place.nbytes
            shared.answered(call.block, connection)
            if not (call.place.kept and reply.header.status is Status.OK):
                shared.returned(call.block)
        else:
            shm.received += call.place.nbytes
        return reply

    @property
    def has_copies(self) -> bool:
        """Are the job's blocks, as far as is known, on more servers than one each?"""
        row = self._agent.row(LEDGER)
        return row is None or bool(row.in_sync or row.learners)

    @property
    def why_not_share(self) -> str:
        """Why this machine's servers may not be given the worker's memory; empty: they may."""
        welcome = self._agent.welcome
        if welcome is not None and not welcome.shared_memory:
            return "the daemon's setting shared_memory is false"
        if not {SHM, UNIX} <= set(self._agent.transports):
            return f"{TRANSPORTS_VARIABLE} leaves it out"
        return ""

    @property
    def has_near_servers(self) -> bool:
        """Is a shard server of this machine known?"""
        return self._agent.has_near_servers

    @property
    def transport(self) -> str:
        """What its requests go over now, and why not shared memory."""
        used = self._pool.transports
        near = self.shared.described if self.shared is not None else "Unix socket"
        far = "TCP (another machine)"
        return "; ".join([near] * ("unix" in used) + [far] * ("tcp" in used))

    async def ledger(self, make: Callable[[WorkerId], Command | Question]) -> Answer:
        """Say something to the ledger and wait for its answer, however long the others take.

        Raises JobFailed when the ledger refuses.
        """
        command = make(self.worker)
        body = msgspec.msgpack.encode(command)
        began_ns = self._spans.begin()
        call = Call(
            kind=Kind.LEDGER, block=LEDGER, meta=body, deadline_s=None, timeout_s=HELD_TIMEOUT_S
        )
        reply = await self.call(call)
        if not isinstance(command, Attend):  # which waits for what may never come
            self._spans.end(type(command).__name__.lower(), began_ns)
        answer: Answer = _answers.decode(reply.meta)
        if isinstance(answer, Refused):
            raise JobFailed(answer.reason, where="the job's ledger")
        return answer

    async def aclose(self) -> None:
        await self._pool.aclose()
