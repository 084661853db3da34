"""The plan: which server holds which replica of each block, and under which epoch.

In etcd a plan is stored in parts of ``PART_BLOCKS`` entries. An entry that a write changes is
stored with epoch 0, which means "the revision of this write": so etcd itself gives the epochs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import msgspec

from elasticps.core.ids import BlockId, PlanEpoch, ServerId
from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import StoreError

PART_BLOCKS = 2048
THIS_WRITE = PlanEpoch(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One block's replicas. ``fresh``: the primary has led the block since its creation. Only then
    may a server that holds nothing act as primary.

    ``since`` is the epoch at which the present primary began to lead, for servers that do not see
    every plan: equal names alone would hide that another has led in between.

    ``goal``: while a move is under way, who shall hold the block after it, the primary first. It
    is the leader's note to the next leader, and nobody else's concern.
    """

    block: BlockId
    primary: ServerId
    in_sync: tuple[ServerId, ...] = ()
    learners: tuple[ServerId, ...] = ()
    epoch: PlanEpoch = THIS_WRITE
    fresh: bool = False
    goal: tuple[ServerId, ...] = ()
    since: PlanEpoch = THIS_WRITE

    @property
    def holders(self) -> tuple[ServerId, ...]:
        """The replicas that hold every acknowledged op: the primary first."""
        return (self.primary, *self.in_sync)

    @property
    def servers(self) -> tuple[ServerId, ...]:
        return (self.primary, *self.in_sync, *self.learners)

    def rewritten(
        self,
        *,
        primary: ServerId,
        in_sync: tuple[ServerId, ...],
        learners: tuple[ServerId, ...],
        goal: tuple[ServerId, ...] = (),
    ) -> Entry:
        """The same block with other replicas, under a new epoch; another goal alone needs none."""
        if (primary, in_sync, learners) == (self.primary, self.in_sync, self.learners):
            return self if goal == self.goal else replace(self, goal=goal)
        return replace(
            self,
            primary=primary,
            in_sync=in_sync,
            learners=learners,
            epoch=THIS_WRITE,
            fresh=self.fresh and primary == self.primary,
            goal=goal,
            since=self.since if primary == self.primary else THIS_WRITE,
        )


_Natural = Annotated[int, msgspec.Meta(ge=0)]


class _Row(msgspec.Struct, frozen=True, array_like=True):
    """An entry; its servers are indexes into the part's list of them."""

    primary: _Natural
    in_sync: list[_Natural]
    learners: list[_Natural]
    epoch: _Natural
    fresh: bool
    goal: list[_Natural] = []
    since: _Natural = 0


class _StoredPart(msgspec.Struct, frozen=True):
    first: _Natural
    servers: list[str]
    entries: list[_Row]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_StoredPart)


def part_of(block: BlockId) -> int:
    return block // PART_BLOCKS


def encode_part(entries: Sequence[Entry]) -> bytes:
    """One part's entries, in block order, as compact msgpack."""
    servers: dict[str, int] = {}

    def index(server: ServerId) -> int:
        return servers.setdefault(server, len(servers))

    def indexes(named: Iterable[ServerId]) -> list[int]:
        return [index(server) for server in named]

    rows = [
        _Row(
            index(entry.primary),
            indexes(entry.in_sync),
            indexes(entry.learners),
            int(entry.epoch),
            entry.fresh,
            indexes(entry.goal),
            int(entry.since),
        )
        for entry in entries
    ]
    return _encoder.encode(_StoredPart(first=entries[0].block, servers=list(servers), entries=rows))


def decode_part(value: bytes, revision: int) -> tuple[Entry, ...]:
    """The entries of a stored part whose key was last written at ``revision``.

    Raises StoreError when the value is not a plan part that elasticps wrote.
    """
    try:
        stored = _decoder.decode(value)
        servers = [ServerId(name) for name in stored.servers]
        return tuple(
            Entry(
                block=BlockId(stored.first + offset),
                primary=servers[row.primary],
                in_sync=tuple(servers[index] for index in row.in_sync),
                learners=tuple(servers[index] for index in row.learners),
                epoch=PlanEpoch(row.epoch or revision),
                fresh=row.fresh,
                goal=tuple(servers[index] for index in row.goal),
                since=PlanEpoch(row.since or revision),
            )
            for offset, row in enumerate(stored.entries)
        )
    except (*UNDECODABLE, IndexError) as error:
        raise StoreError(f"not a plan part: {error}", field="plan") from error


def parts(entries: Iterable[Entry]) -> dict[int, tuple[Entry, ...]]:
    """Entries by the part that stores them."""
    by_part: dict[int, list[Entry]] = {}
    for entry in entries:
        by_part.setdefault(part_of(entry.block), []).append(entry)
    return {part: tuple(group) for part, group in by_part.items()}
