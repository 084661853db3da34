"""A worker's requests of many blocks, in one frame for all that a server leads.

This is the quick way and not the sure one: what it does not settle (a block that has moved, a
server that is gone, a group that one refusal ended) is for the caller to ask block by block, with
the same sequence number.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec

from elasticps.core.ids import BlockId, JobKey, ServerId, WorkerId
from elasticps.errors import JobFailed, PeerUnavailable, WireError
from elasticps.wire.connection import Connection
from elasticps.wire.control_messages import PlanUpdate
from elasticps.wire.frame import FLAG_EMPTY, Header, Kind, Status
from elasticps.wire.groups import (
    EMPTY,
    MAX_GROUP_BYTES,
    MAX_LANDED_BYTES,
    MAX_PIECES,
    NOT_YET,
    SMALL_BYTES,
    GroupMeta,
    GroupReply,
    Piece,
    aligned,
    payload_size,
)
from elasticps.wire.inflight import Parts, Reply
from elasticps.wire.messages import PullMeta, PushMeta, RefusalMeta, decode, encode
from elasticps.wire.pool import ConnectionPool
from elasticps.wire.transports import SHM, UNIX
from elasticps.worker.agent import Agent
from elasticps.worker.parameters import BlockMemory
from elasticps.worker.shared_memory import SharedMemory

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from elasticps.worker.client import Call

SLICE_BYTES = MAX_GROUP_BYTES // 2
PLACED_BYTES = 128 << 20
"""Of blocks in one frame whose bytes stay where they are: a server turns to others in between."""
STREAMED_BYTES = 32 << 20
"""Of large blocks in one frame whose bytes are sent: what a server does with them it does while the
next come in."""
ALONE_BYTES = 128 << 20
"""The same, where it has nothing to do with them before it has a worker's whole round."""

_FINAL = frozenset({Status.OK, Status.STALE_GENERATION, Status.CONFLICT})
Settled = list["Reply | None"]


def slices(
    memory: Sequence[BlockMemory],
    is_placed: Callable[[BlockMemory], bool],
    *,
    streamed: int = STREAMED_BYTES,
) -> list[list[BlockMemory]]:
    """Blocks in runs that a group has room for: the small ones first, and more of the large ones
    where their bytes stay in shared memory (``is_placed``).

    ``streamed``: bytes of large blocks that are sent in a run; with 0 each is by itself: it is yet
    to be coded, say, and is to be on its way before the next.

    Every worker has the blocks in the same order, whatever it knows of the plan and however long
    its runs are: so the lowest that is not answered is under way at each of them.
    """
    whole = SLICE_BYTES, PLACED_BYTES, streamed
    runs: list[list[BlockMemory]] = []
    room = [0, 0, 0]
    large = [each for each in memory if each.block.nbytes > SMALL_BYTES]
    for each in [*(each for each in memory if each.block.nbytes <= SMALL_BYTES), *large]:
        nbytes = each.block.nbytes
        way = 0 if nbytes <= SMALL_BYTES else 1 if is_placed(each) else 2
        if nbytes > room[way] or len(runs[-1]) == MAX_PIECES:
            runs.append([])
            room = list(whole)
        runs[-1].append(each)
        room[way] -= nbytes
        if room[way] < 0:  # it is by itself
            room = [0, 0, 0]
    return runs


class Member(msgspec.Struct, frozen=True, gc=False):
    """A call, by its index among those that came with it, and its piece of the frame."""

    index: int
    call: Call
    piece: Piece


_Key = tuple[ServerId, bytes, int, int, bool]
"""What the calls of one frame have in common: primary, meta, flags, region, and what is kept."""


class Group(msgspec.Struct, frozen=True, gc=False):
    """Calls that go in one frame."""

    key: _Key
    members: list[Member]


class GroupCalls:
    """Those of one client. ``shared``: this worker's regions, once it has any."""

    def __init__(
        self, agent: Agent, pool: ConnectionPool[ServerId], job: JobKey, worker: WorkerId
    ) -> None:
        self.shared: SharedMemory | None = None
        self.agent = agent
        self.spans = agent.spans
        self._pool = pool
        self.job = job
        self.worker = worker
        self._asking: dict[asyncio.Timeout, tuple[ServerId, Sequence[BlockId]]] = {}

    def divided(self, calls: Sequence[Call]) -> tuple[list[Group], list[int]]:
        """The groups that calls of one kind, round and sequence number make, and who is in none.

        All must be under way at a time: another worker may have other groups, and wait for these.
        """
        groups = [
            Group(key, part)
            for key, members in self._groups(calls).items()
            for part in self._parts(key, members)
            if len(part) > 1
        ]
        known = {member.index for group in groups for member in group.members}
        return groups, [index for index in range(len(calls)) if index not in known]

    def _parts(self, key: _Key, members: list[Member]) -> Iterator[list[Member]]:
        """A group in such parts as can be sent, where its bytes do not stay where they are."""
        part: list[Member] = []
        room = STREAMED_BYTES + SLICE_BYTES
        for each in members:
            nbytes = 0 if key[3] and self._is_near(key[0]) else aligned(each.piece.nbytes)
            if part and nbytes > room:
                yield part
                part, room = [], STREAMED_BYTES + SLICE_BYTES
            part.append(each)
            room -= nbytes
        yield part

    def is_asking(self, block: BlockId) -> bool:
        """Is a server being asked for the block now?"""
        return any(block in blocks for _, blocks in self._asking.values())

    def give_up_deposed(self, update: PlanUpdate) -> None:
        """Do not wait for who does not lead all of a group any more: it may never answer."""
        if not self._asking:
            return
        primaries = {row.block: row.primary for row in update.rows}
        now = asyncio.get_running_loop().time()
        for scope, (asked, blocks) in self._asking.items():
            led = all(primaries.get(block, asked) == asked for block in blocks)
            if not led and not scope.expired():
                scope.reschedule(now)

    @contextlib.asynccontextmanager
    async def asking(
        self, primary: ServerId, blocks: Sequence[BlockId]
    ) -> AsyncIterator[Connection]:
        """A connection to who leads ``blocks``. Raises PeerUnavailable, and TimeoutError once
        another leads one of them."""
        scope = asyncio.timeout(None)
        try:
            async with scope:
                self._asking[scope] = primary, blocks
                yield await self._pool.connection(primary)
        finally:
            self._asking.pop(scope, None)

    def in_one(self, calls: Sequence[Call]) -> Group | None:
        """The group that all of the calls make; None where they make several, or are in none."""
        groups = self._groups(calls)
        if len(groups) != 1:
            return None
        [(key, members)] = groups.items()
        return Group(key, members) if len(members) == len(calls) else None

    def _groups(self, calls: Sequence[Call]) -> dict[_Key, list[Member]]:
        groups: dict[_Key, list[Member]] = {}
        shared = self.shared
        for index, call in enumerate(calls):
            row, place = self.agent.row(call.block), call.place
            if row is None or (shared is not None and shared.is_abandoned(call.block)):
                continue
            nbytes = EMPTY if call.payload is None else len(call.payload)
            if call.into is not None:
                nbytes = len(call.into)
            offset = 0 if place is None else place.offset
            region, kept = (0, False) if place is None else (place.region, place.kept)
            key = row.primary, call.meta, call.flags & ~FLAG_EMPTY, region, kept
            member = Member(index, call, Piece(call.block, row.epoch, nbytes, offset))
            groups.setdefault(key, []).append(member)
        return groups

    def _is_near(self, server: ServerId) -> bool:
        """Is it of this machine, and may map this worker's regions?"""
        address = self.agent.address(server)
        return address is not None and address.transport == UNIX

    async def ask(self, group: Group, settled: Settled) -> list[int]:
        """Ask all of a group at once; ``settled`` gets each reply, as of a call by itself.

        Returns whose is not known. Raises JobFailed when a block refused.
        """
        await self._ask(group.key, group.members, settled)
        return [each.index for each in group.members if settled[each.index] is None]

    async def _ask(self, key: _Key, members: list[Member], settled: Settled) -> None:
        primary, _, flags, region, _ = key
        first = members[0].call
        header = Header(
            Kind.GROUP,
            flags=flags,
            job=self.job,
            worker=self.worker,
            seq=first.seq,
            round=first.round,
        )
        try:
            async with self.asking(primary, [each.call.block for each in members]) as connection:
                began_ns, via = self.spans.begin(), str(connection.where.transport)
                shared = self.shared
                if region and shared is not None and await shared.ready(connection, first.block):
                    via = SHM
                    await self._by_places(shared, connection, header, key, members, settled)
                else:
                    await self._by_payload(connection, header, key, members, settled)
        except (TimeoutError, PeerUnavailable):
            return
        if began_ns:
            nbytes = sum(max(each.piece.nbytes, 0) for each in members)
            name = first.kind.name.lower()
            self.spans.end(
                name, began_ns, block=first.block, nbytes=nbytes, via=via, round_=first.round
            )

    async def _by_payload(
        self,
        connection: Connection,
        header: Header,
        key: _Key,
        members: list[Member],
        settled: Settled,
    ) -> None:
        if not fits_payload(members):
            return
        parts = parts_of(members)
        reply = await connection.request(
            header,
            encode(meta_of(key, members, region=0)),
            payload_of(members),
            parts=parts,
            max_reply=sum(each.piece.nbytes for each in members if each.call.into is not None),
            timeout_s=members[0].call.timeout_s,
        )
        take(_said(reply), reply.payload, parts, key[0], members, settled)

    async def _by_places(
        self,
        shared: SharedMemory,
        connection: Connection,
        header: Header,
        key: _Key,
        members: list[Member],
        settled: Settled,
    ) -> None:
        if members[0].call.kind is Kind.PUSH:
            for each in members:
                shared.lend(each.call.block)
        meta = encode(meta_of(key, members, region=key[3]))
        try:
            reply = await connection.request(header, meta, timeout_s=members[0].call.timeout_s)
        except BaseException:
            if not connection.ended_by_peer:
                for each in members:
                    abandon(shared, each.call, connection)
            raise
        self.take_by_places(shared, connection, _said(reply), Group(key, members), settled)

    def take_by_places(
        self,
        shared: SharedMemory,
        connection: Connection,
        said: GroupReply | None,
        group: Group,
        settled: Settled,
    ) -> None:
        """What the server says of each is true of the places that it was told of, too."""
        pushes, kept = group.members[0].call.kind is Kind.PUSH, group.key[4]
        traffic = self._pool.traffic.by_transport[SHM]
        for each, status in _settle(said, group.key[0], group.members, settled):
            block, nbytes = each.call.block, each.piece.nbytes
            if not pushes:
                traffic.received += nbytes  # and nothing is written there once this is answered
                continue
            traffic.sent += nbytes
            if status is NOT_YET:
                abandon(shared, each.call, connection)
                continue
            shared.answered(block, connection)
            if status is Status.OK and not kept:
                shared.returned(block)


def meta_of(key: _Key, members: Sequence[Member], *, region: int) -> GroupMeta:
    pieces = tuple(each.piece for each in members)
    if members[0].call.kind is Kind.PUSH:
        return GroupMeta(pieces, push=decode(key[1], PushMeta), region=region, kept=key[4])
    return GroupMeta(pieces, pull=decode(key[1], PullMeta), region=region)


def fits_payload(members: Sequence[Member]) -> bool:
    """Can the bytes be sent in one frame?"""
    return payload_size([each.piece for each in members]) <= MAX_LANDED_BYTES


def payload_of(members: Sequence[Member]) -> list[Buffer]:
    """What is sent of each, aligned: not copied, where it is much."""
    padded: list[Buffer] = []
    for each in members:
        payload = each.call.payload
        if payload is not None:
            padded += [payload, bytes(aligned(len(payload)) - len(payload))]
    is_much = payload_size([each.piece for each in members]) > MAX_GROUP_BYTES
    return padded if is_much else [b"".join(padded)]


def parts_of(members: Sequence[Member]) -> Parts:
    """Where the large values go, which come before the answer."""
    return Parts(
        {
            each.call.block: each.call.into
            for each in members
            if each.call.into is not None and len(each.call.into) > SMALL_BYTES
        }
    )


def _said(reply: Reply) -> GroupReply | None:
    return decode(reply.meta, GroupReply) if reply.header.status is Status.OK else None


def take(
    said: GroupReply | None,
    values: memoryview | None,
    parts: Parts,
    primary: ServerId,
    members: Sequence[Member],
    settled: Settled,
) -> None:
    """Take in what the server says of each, and the values that came with it."""
    values, start = values or memoryview(b""), 0
    for each, status in _settle(said, primary, members, settled):
        into = each.call.into
        if status is not Status.OK or into is None:
            continue
        if each.call.block in parts.into:
            if each.call.block not in parts.here:
                raise WireError("a group's answer before its values", field="statuses")
        else:
            if start + len(into) > len(values):
                raise WireError("a group's values are too short", field="payload_length")
            into[:] = values[start : start + len(into)]
            start += len(into)


def _settle(
    said: GroupReply | None, primary: ServerId, members: Sequence[Member], settled: Settled
) -> Iterator[tuple[Member, Status]]:
    """Take in what the server says of each; raises JobFailed for what it refuses for good."""
    if said is None:
        return
    if len(said.statuses) != len(members):
        raise WireError("a group's answer is of other blocks", field="statuses")
    refusal: bytes | None = None
    for index, (each, number) in enumerate(zip(members, said.statuses, strict=True)):
        status, meta = _STATUSES[number], said.metas.get(index, b"")
        if status is Status.REFUSED:
            refusal = meta
        if status in _FINAL:
            settled[each.index] = Reply(_HEADERS[status], meta, None)
        yield each, status
    if refusal is not None:
        raise JobFailed(decode(refusal, RefusalMeta).reason, where=primary)


_STATUSES = tuple(Status)
_HEADERS = {status: Header(Kind.GROUP, status=status) for status in Status}


def abandon(shared: SharedMemory, call: Call, connection: Connection) -> None:
    assert call.place is not None
    shared.abandoned(call.place, call.block, connection)
