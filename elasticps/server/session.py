"""One data connection to a worker or another server: frames in, checked, and passed on."""

from __future__ import annotations

import time
from collections.abc import Iterator

import msgspec
import torch

from elasticps.core.ids import LEDGER
from elasticps.errors import WireError
from elasticps.server import following
from elasticps.server.admission import Admission, Admitted, Open
from elasticps.server.group import Group
from elasticps.server.hosted import Hosted, Request
from elasticps.server.joint_pulls import Pulls, step_for
from elasticps.server.landed import Landed
from elasticps.server.ledger_host import LedgerHost
from elasticps.server.parameter_block import ParameterBlock
from elasticps.server.shared import SharedRegions
from elasticps.server.table import Table
from elasticps.server.tensor_block import MAX_STATE_FACTOR
from elasticps.server.whole_round import Parts, WholeRound
from elasticps.wire.connection import Connection
from elasticps.wire.frame import FLAG_EMPTY, Header, Kind, Status
from elasticps.wire.groups import EMPTY, MAX_GROUP_BYTES, GroupMeta, Piece, check_group
from elasticps.wire.messages import (
    HelloMeta,
    Place,
    PullMeta,
    PushMeta,
    RefusalMeta,
    SaveMeta,
    StateMeta,
    decode,
    encode,
)
from elasticps.wire.parser import Target
from elasticps.wire.region_socket import RegionSocket
from elasticps.wire.replicated import OpsMeta, check_ops
from elasticps.wire.tensors import bytes_of
from elasticps.wire.whole_rounds import RoundMeta, check_round

STATE_SLACK = 64 * 1024
_PAYLOAD_KINDS = frozenset(
    {
        Kind.PUSH,
        Kind.INIT,
        Kind.SNAPSHOT,
        Kind.OP,
        Kind.PROBE,
        Kind.GROUP,
        Kind.OPS,
        Kind.ROUND,
    }
)
_CLIENT_KINDS = frozenset(
    {
        Kind.PUSH,
        Kind.PULL,
        Kind.INIT,
        Kind.LEDGER,
        Kind.STATE,
        Kind.STATUS,
        Kind.SAVE,
        Kind.SHARE,
        Kind.GROUP,
        Kind.ROUND,
    }
)


class Lease:
    """How long the node's lease lets this server serve, on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.deadline = 0.0

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self.deadline


class Session:
    """The server's end of one connection (a ``wire.connection.Dispatcher``)."""

    def __init__(
        self,
        cluster: str,
        table: Table,
        lease: Lease,
        admission: Admission | None = None,
        passing: RegionSocket | None = None,
    ) -> None:
        self._cluster = cluster
        self._table = table
        self._lease = lease
        self._admission = admission or Open()
        self._admitted: Admitted | None = None
        self._caller = ""
        self._incoming: torch.Tensor | Landed | None = None
        self._regions = SharedRegions(passing)
        self._following = following.Following(table, passing)

    def destination(self, conn: Connection, header: Header, meta: bytes) -> Target | None:
        """Memory for a payload that its block can take; a block that is not here drops it."""
        if self._admitted is None:
            raise WireError("a payload before hello", field="kind")
        if header.kind not in _PAYLOAD_KINDS:
            raise WireError(
                f"a {header.kind.name} takes no payload", field="payload_length", limit="0"
            )
        self._admitted.check(header)
        if header.kind is Kind.PROBE:
            return None
        if header.kind in (Kind.GROUP, Kind.ROUND):
            is_round = header.kind is Kind.ROUND
            group = decode(meta, RoundMeta).push if is_round else decode(meta, GroupMeta)
            check_group(group, header.payload_length)
            return self._landing(header, group)
        if header.kind is Kind.OPS:
            check_ops(decode(meta, OpsMeta), header.payload_length)
            self._incoming = torch.empty(header.payload_length, dtype=torch.uint8)
            return bytes_of(self._incoming)
        hosted = self._table.replica(header.job, header.block)
        if hosted is None:
            self._incoming = None
            return None
        self._check_length(header, hosted)
        self._incoming = self._table.landing.take(header.payload_length)
        return bytes_of(self._incoming)

    def _landing(self, header: Header, group: GroupMeta) -> Target | None:
        """Memory for a group's gradients; much of it only where all of its blocks are here."""
        self._incoming = None
        if header.payload_length > MAX_GROUP_BYTES:
            for piece in group.pieces:
                hosted = self._table.replica(header.job, piece.block)
                if not isinstance(hosted, ParameterBlock):
                    return None
                if piece.nbytes != EMPTY:
                    hosted.check_push_nbytes(piece.nbytes)
        self._incoming = Landed(group.pieces, self._table.landing.take)
        return self._incoming.target

    def _check_length(self, header: Header, hosted: Hosted) -> None:
        if not isinstance(hosted, ParameterBlock):
            raise WireError("a ledger takes no payload", field="payload_length", limit="0")
        size, block = header.payload_length, hosted.nbytes
        if header.kind is Kind.PUSH:
            hosted.check_push_nbytes(size)
        if size > block * MAX_STATE_FACTOR + STATE_SLACK:
            raise WireError(
                f"{size} bytes for a block of {block}",
                field="payload_length",
                limit=f"{MAX_STATE_FACTOR} times the block",
            )

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        incoming, self._incoming = self._incoming, None
        request = Request(conn, header, self._table.tallies.refused)
        if header.kind is Kind.HELLO:
            self._hello(request, meta)
            return
        if self._admitted is None:
            raise WireError("a request before hello", field="kind")
        self._admitted.check(header)
        if header.kind in _CLIENT_KINDS:
            self._client(request, meta, payload, incoming)
        elif header.kind in following.KINDS:
            self._following.received(request, meta, payload)
        elif header.kind is Kind.PROBE:
            request.answer(Status.OK)
        else:
            raise WireError(f"{header.kind.name} is not for a shard server", field="kind")

    def closed(self, conn: Connection) -> None:
        self._incoming = None
        self._regions.close()
        self._following.closed()

    def _hello(self, request: Request, meta: bytes) -> None:
        hello = decode(meta, HelloMeta)
        if hello.cluster != self._cluster or not hello.caller:
            raise WireError(
                f"a caller of cluster {hello.cluster!r}", field="cluster", limit=self._cluster
            )
        self._admitted = self._admission.admit(request.connection, hello)
        self._caller = hello.caller
        request.answer(Status.OK)

    # -- workers --------------------------------------------------------------------------------

    def _client(
        self,
        request: Request,
        meta: bytes,
        payload: memoryview | None,
        incoming: torch.Tensor | Landed | None,
    ) -> None:
        header = request.header
        if self._caller != str(header.worker):
            raise WireError(
                f"{self._caller} speaks for worker {header.worker}",
                field="worker",
                limit=self._caller,
            )
        if self._lease.expired:
            request.answer(Status.NOT_SERVING)
            return
        broken = self._table.broken(header.job)
        if broken:
            request.answer(Status.REFUSED, encode(RefusalMeta(broken)))
            return
        if header.kind is Kind.SHARE:
            self._share(request)
            return
        if header.kind in (Kind.GROUP, Kind.ROUND):
            assert not isinstance(incoming, torch.Tensor)
            self._many(request, meta, incoming)
            return
        assert not isinstance(incoming, Landed)
        hosted = self._table.replica(header.job, header.block)
        dropped = header.payload_length > 0 and payload is None
        if hosted is None or dropped:
            request.answer(Status.UNKNOWN)
            return
        refusal = hosted.refusal(header)
        if refusal is not None:
            request.answer(refusal)
            return
        if isinstance(hosted, LedgerHost) and header.kind is Kind.LEDGER:
            hosted.command(request, meta)
        elif isinstance(hosted, ParameterBlock) and header.kind is not Kind.LEDGER:
            self._block(hosted, request, meta, payload, incoming)
        else:
            raise WireError(f"{header.kind.name} is not for block {header.block}", field="block")

    def _share(self, request: Request) -> None:
        """Say how this worker's regions can be shown, once the job's model is known here."""
        sizes = self._table.block_bytes(request.header.job)
        if not sizes:
            request.answer(Status.UNKNOWN)
            return
        offer = self._regions.offer(request.connection, sizes)
        request.answer(Status.OK, encode(offer) if offer else b"")

    def _many(self, request: Request, meta: bytes, incoming: Landed | None) -> None:
        """Many blocks' requests in one frame."""
        if request.header.kind is Kind.ROUND:
            self._round(request, decode(meta, RoundMeta), incoming)
            return
        group = decode(meta, GroupMeta)
        check_group(group, request.header.payload_length)
        answered = Group(request.connection, request.header, group, request.refused)
        if group.push is not None:
            self._push_each(answered, group, incoming)
            return
        pulls = self._pulls(answered, group)
        step_for([pulls], self._table.threads)
        pulls.answer()

    def _round(self, request: Request, meta: RoundMeta, incoming: Landed | None) -> None:
        check_round(meta, request.header)
        job = request.header.job

        def ledger() -> LedgerHost | None:
            serves = not (self._lease.expired or self._table.broken(job))
            hosted = self._table.replica(job, LEDGER) if serves else None
            return hosted if isinstance(hosted, LedgerHost) else None

        parts = Parts(self._push_each, self._pulls, ledger, self._table.pulls)
        WholeRound(request, meta, parts).start(incoming)

    def _push_each(self, group: Group, meta: GroupMeta, incoming: Landed | None) -> None:
        """Make each piece's push as if it had come by itself; they are answered together."""
        push, region = meta.push, meta.region
        assert push is not None
        if region:
            push = msgspec.structs.replace(push, place=Place(region, 0, 0, meta.kept))
        dropped = group.header.payload_length > 0 and incoming is None
        for index, piece, block, each in self._served(group, meta, dropped=dropped):
            block.push(each, push, self._gradient(block, piece, index, region, incoming))
        group.begun()

    def _pulls(self, group: Group, meta: GroupMeta) -> Pulls:
        """Each piece's pull as if it had come by itself, yet to be made."""
        assert meta.pull is not None
        reads: list[tuple[ParameterBlock, Request]] = []
        for _, piece, block, each in self._served(group, meta):
            if meta.region:
                each.into = self._value_at(block, Kind.PULL, piece.place_in(meta.region))
            reads.append((block, each))
        return Pulls(group, reads, meta.pull)

    def _served(
        self, group: Group, meta: GroupMeta, *, dropped: bool = False
    ) -> Iterator[tuple[int, Piece, ParameterBlock, Request]]:
        """Each piece that is not refused here and now: its number, its block and its request."""
        for index, piece in enumerate(meta.pieces):
            each = group.request(piece)
            hosted = self._table.replica(group.header.job, piece.block)
            if hosted is None or dropped:
                each.answer(Status.UNKNOWN)
                continue
            if not isinstance(hosted, ParameterBlock):
                raise WireError(f"a group with block {piece.block}", field="block")
            refusal = hosted.refusal(each.header)
            if refusal is not None:
                each.answer(refusal)
            else:
                yield index, piece, hosted, each

    def _gradient(
        self,
        block: ParameterBlock,
        piece: Piece,
        index: int,
        region: int,
        incoming: Landed | None,
    ) -> torch.Tensor | None:
        if piece.nbytes == EMPTY:
            return None
        block.check_push_nbytes(piece.nbytes)
        if region:
            return self._regions.gradient(piece.place_in(region), block.pushed_dtype)
        if incoming is None:
            raise WireError("pushes without their gradients", field="payload_length")
        return incoming.gradient(index)

    def _block(
        self,
        block: ParameterBlock,
        request: Request,
        meta: bytes,
        payload: memoryview | None,
        incoming: torch.Tensor | None,
    ) -> None:
        kind = request.header.kind
        if kind is Kind.PUSH:
            push = decode(meta, PushMeta)
            if push.place is not None:
                incoming = self._in_place(block, request, push.place)
            elif incoming is None and not request.header.flags & FLAG_EMPTY:
                raise WireError("a push without its gradient", field="payload_length")
            block.push(request, push, incoming)
        elif kind is Kind.INIT:
            if payload is None:
                raise WireError("an initial value without its numbers", field="payload_length")
            block.initialize(request, decode(meta, StateMeta), payload)
        elif kind is Kind.SAVE:
            block.save(request, decode(meta, SaveMeta))
        else:
            pull = decode(meta, PullMeta)
            if pull.place is not None:
                request.into = self._value_at(block, kind, pull.place)
            request.holds = pull.holds
            block.read(request, pull)

    def _value_at(self, block: ParameterBlock, kind: Kind, place: Place) -> torch.Tensor:
        _check_value(block, kind, place)
        return self._regions.value(place, block.dtype)

    def _in_place(self, block: ParameterBlock, request: Request, place: Place) -> torch.Tensor:
        if request.header.payload_length:
            raise WireError("a gradient in two places", field="payload_length", limit="0")
        block.check_push_nbytes(place.nbytes)
        return self._regions.gradient(place, block.pushed_dtype)


def _check_value(block: ParameterBlock, kind: Kind, place: Place) -> None:
    if kind is not Kind.PULL or place.nbytes != block.nbytes:
        raise WireError(
            f"{kind.name} of block {block.id} into {place.nbytes} bytes",
            field="nbytes",
            limit=f"PULL, exactly {block.nbytes}",
        )
