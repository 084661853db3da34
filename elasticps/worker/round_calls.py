"""A worker's whole round as one request, where one server leads its ledger and all its blocks.

As with groups this is the quick way and not the sure one: what it does not settle is for the caller
to ask part by part, with the same sequence number and the same vote.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import msgspec

from elasticps.core.commands import Answer, Refused, Vote
from elasticps.core.ids import LEDGER
from elasticps.errors import JobFailed, PeerUnavailable
from elasticps.wire.connection import Connection
from elasticps.wire.frame import Header, Kind, Status
from elasticps.wire.inflight import Parts, Reply
from elasticps.wire.messages import decode, encode
from elasticps.wire.transports import SHM
from elasticps.wire.whole_rounds import RoundMeta, RoundReply
from elasticps.worker.group_calls import (
    Group,
    GroupCalls,
    Settled,
    abandon,
    fits_payload,
    meta_of,
    parts_of,
    payload_of,
    take,
)
from elasticps.worker.shared_memory import SharedMemory

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from elasticps.worker.client import Call

_answers = msgspec.msgpack.Decoder(Answer)


class Told(msgspec.Struct, frozen=True, gc=False):
    """What is known of each push, of the vote, and of each pull; None for what is not."""

    pushed: Settled
    answer: Answer | None
    pulled: Settled


class _Ways(msgspec.Struct, frozen=True, gc=False):
    """A round's two groups, and whether each is by places in shared memory."""

    push: Group
    pull: Group
    places: tuple[bool, bool]


class RoundCalls:
    """Those of one client."""

    def __init__(self, groups: GroupCalls) -> None:
        self._groups = groups

    async def ask(self, pushes: Sequence[Call], vote: Vote, pulls: Sequence[Call]) -> Told | None:
        """Push, vote and pull by one request; None where that cannot be, and nothing was sent.

        Raises JobFailed when a block refused.
        """
        groups = self._groups
        ledger = groups.agent.row(LEDGER)
        push, pull = groups.in_one(pushes), groups.in_one(pulls)
        if ledger is None or push is None or pull is None:
            return None
        primary = ledger.primary
        if not primary == push.key[0] == pull.key[0]:
            return None
        first = pushes[0]
        header = Header(
            Kind.ROUND,
            flags=push.key[2],
            job=groups.job,
            worker=groups.worker,
            seq=first.seq,
            round=first.round,
        )
        try:
            async with groups.asking(primary, [LEDGER, *(call.block for call in pushes)]) as conn:
                began_ns = groups.spans.begin()
                shared, regions = groups.shared, (push.key[3], pull.key[3])
                near = any(regions) and shared is not None and await shared.ready(conn, first.block)
                ways = _Ways(push, pull, (near and regions[0] > 0, near and regions[1] > 0))
                parts = zip((push, pull), ways.places, strict=True)
                if not all(by_places or fits_payload(part.members) for part, by_places in parts):
                    return None
                payload = [] if ways.places[0] else payload_of(push.members)
                values = Parts({}) if ways.places[1] else parts_of(pull.members)
                meta = RoundMeta(
                    meta_of(push.key, push.members, region=push.key[3] if ways.places[0] else 0),
                    vote,
                    ledger.epoch,
                    meta_of(pull.key, pull.members, region=pull.key[3] if ways.places[1] else 0),
                )
                reply = await _requested(conn, header, encode(meta), payload, values, ways, shared)
                told = self._taken(reply, values, conn, ways, shared)
        except (TimeoutError, PeerUnavailable):
            return _nothing(push, pull)
        via = SHM if near else str(conn.where.transport)
        nbytes = sum(each.piece.nbytes for each in pull.members)
        groups.spans.end("round", began_ns, nbytes=nbytes, via=via, round_=first.round)
        return told

    def _taken(
        self,
        reply: Reply,
        values: Parts,
        connection: Connection,
        ways: _Ways,
        shared: SharedMemory | None,
    ) -> Told:
        told = _nothing(ways.push, ways.pull)
        if reply.header.status is not Status.OK:
            return told
        said = decode(reply.meta, RoundReply)
        answer: Answer | None = _answers.decode(said.answer) if said.answer else None
        if isinstance(answer, Refused):
            raise JobFailed(answer.reason, where="the job's ledger")
        told = msgspec.structs.replace(told, answer=answer)
        parts = ((ways.push, said.pushed, told.pushed), (ways.pull, said.pulled, told.pulled))
        for (group, of_it, settled), by_places in zip(parts, ways.places, strict=True):
            if by_places:
                assert shared is not None
                self._groups.take_by_places(shared, connection, of_it, group, settled)
            else:
                take(of_it, reply.payload, values, group.key[0], group.members, settled)
        return told


def _nothing(push: Group, pull: Group) -> Told:
    return Told([None] * len(push.members), None, [None] * len(pull.members))


async def _requested(
    connection: Connection,
    header: Header,
    meta: bytes,
    payload: list[Buffer],
    values: Parts,
    ways: _Ways,
    shared: SharedMemory | None,
) -> Reply:
    pushed = ways.push.members if ways.places[0] else []
    pulled = ways.pull.members if ways.places[1] else []
    if shared is not None:
        for each in pushed:
            shared.lend(each.call.block)
    try:
        return await connection.request(
            header,
            meta,
            payload,
            parts=values,
            max_reply=sum(each.piece.nbytes for each in ways.pull.members),
            timeout_s=ways.push.members[0].call.timeout_s,
        )
    except BaseException:
        if shared is not None and not connection.ended_by_peer:
            for each in (*pushed, *pulled):
                abandon(shared, each.call, connection)
        raise
