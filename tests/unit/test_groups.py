"""Many blocks in one frame: its limits, and when a server answers it."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import pytest
import torch

from elasticps.core.ids import BlockId, Generation, PlanEpoch
from elasticps.errors import WireError
from elasticps.server.group import Group
from elasticps.server.landed import Landed
from elasticps.wire.connection import Connection
from elasticps.wire.frame import FLAG_PART, Header, Kind, Status
from elasticps.wire.groups import (
    EMPTY,
    MAX_PIECES,
    NOT_YET,
    GroupMeta,
    GroupReply,
    Piece,
    check_group,
    offsets,
    payload_size,
)
from elasticps.wire.messages import Place, PullMeta, PushMeta, decode

PUSH = PushMeta(Generation(1), 1.0, {}, 1, None)


class Answered:
    """Stands in for a connection: what was sent over it."""

    closed = False

    def __init__(self) -> None:
        self.frames: list[tuple[GroupReply, bytes | None]] = []
        self.parts: list[tuple[int, int]] = []

    def send(self, header: Header, meta: bytes = b"", payload: bytes | None = None) -> None:
        if header.flags & FLAG_PART:
            assert payload is not None
            self.parts.append((header.block, len(payload)))
            return
        self.frames.append((decode(meta, GroupReply), payload))


def piece(block: int, nbytes: int = 8) -> Piece:
    return Piece(BlockId(block), PlanEpoch(1), nbytes)


def group_of(meta: GroupMeta) -> tuple[Answered, Group]:
    conn = Answered()
    return conn, Group(cast("Connection", conn), Header(Kind.GROUP), meta, Counter())


def test_a_group_is_answered_once_when_all_its_blocks_are() -> None:
    conn, group = group_of(GroupMeta((piece(1), piece(2)), pull=PullMeta()))
    first, second = (group.request(each) for each in (piece(1), piece(2)))
    second.answer(Status.OK, b"", b"2222")
    group.begun()
    assert not conn.frames
    first.answer(Status.OK, b"", b"1111")
    assert conn.frames == [(GroupReply(bytes([Status.OK, Status.OK])), b"11112222")]


def test_a_refusal_ends_a_group_at_once_for_others_may_wait_for_that_block() -> None:
    conn, group = group_of(GroupMeta((piece(1), piece(2)), push=PUSH))
    held, refused = (group.request(each) for each in (piece(1), piece(2)))
    refused.answer(Status.FENCED)
    group.begun()
    assert [frame[0].statuses for frame in conn.frames] == [bytes([NOT_YET, Status.FENCED])]
    held.answer(Status.OK)
    assert len(conn.frames) == 1


def test_what_a_group_did_not_wait_for_is_not_written_to_the_workers_memory() -> None:
    _, group = group_of(GroupMeta((piece(1), piece(2)), pull=PullMeta(), region=1))
    waiting, refused = (group.request(each) for each in (piece(1), piece(2)))
    waiting.into = torch.zeros(8, dtype=torch.uint8)
    refused.answer(Status.BEHIND)
    group.begun()
    assert waiting.into is None


def test_large_values_go_before_the_answer_as_soon_as_they_are_there() -> None:
    pieces = (piece(1, 100_000), piece(2), piece(3, 200_000))
    conn, group = group_of(GroupMeta(pieces, pull=PullMeta()))
    first, small, last = (group.request(each) for each in pieces)
    group.begun()
    last.answer(Status.OK, b"", bytes(200_000))
    small.answer(Status.OK, b"", b"22222222")
    assert conn.parts == [(3, 200_000)]
    assert not conn.frames
    first.answer(Status.OK, b"", bytes(100_000))
    assert conn.parts == [(3, 200_000), (1, 100_000)]
    assert conn.frames == [(GroupReply(bytes(3)), b"22222222")]


def test_no_value_follows_the_answer_that_a_refusal_has_made() -> None:
    pieces = (piece(1, 100_000), piece(2, 100_000))
    conn, group = group_of(GroupMeta(pieces, pull=PullMeta()))
    waiting, refused = (group.request(each) for each in pieces)
    refused.answer(Status.FENCED)
    group.begun()
    waiting.answer(Status.OK, b"", bytes(100_000))
    assert len(conn.frames) == 1
    assert not conn.parts


def test_gradients_land_one_after_the_other_and_large_ones_by_themselves() -> None:
    pieces = [piece(1, 4), piece(2, EMPTY), piece(3, 17), piece(4, 100_001), piece(5, 8)]
    taken: list[int] = []

    def take(nbytes: int) -> torch.Tensor:
        taken.append(nbytes)
        return torch.zeros(nbytes, dtype=torch.uint8)

    landed = Landed(pieces, take)
    assert taken == [48, 100_016, 16]
    for number, view in enumerate(landed.target):
        view[:] = bytes(index % 250 + number for index in range(len(view)))
    assert landed.gradient(0).tolist() == [0, 1, 2, 3]
    assert landed.gradient(2)[0] == 16
    assert landed.gradient(3).numel() == 100_001
    assert landed.gradient(4).tolist() == list(range(2, 10))


def test_pieces_lie_aligned_one_after_the_other() -> None:
    pieces = [piece(1, 4), piece(2, EMPTY), piece(3, 16), piece(4, 17)]
    assert list(offsets(pieces)) == [0, 16, 16, 32]
    assert payload_size(pieces) == 64


PLACED = PushMeta(Generation(1), 1.0, {}, 1, None, place=Place(1, 0, 8))
BROKEN: dict[str, tuple[GroupMeta, int, str]] = {
    "neither": (GroupMeta((piece(1),)), 0, "push"),
    "both": (GroupMeta((piece(1),), push=PUSH, pull=PullMeta()), 16, "push"),
    "no piece": (GroupMeta((), push=PUSH), 0, "pieces"),
    "too many": (GroupMeta((piece(1, EMPTY),) * (MAX_PIECES + 1), push=PUSH), 0, "pieces"),
    "a negative size": (GroupMeta((piece(1, -2),), push=PUSH), 0, "nbytes"),
    "a place of its own": (GroupMeta((piece(1),), push=PLACED), 16, "place"),
    "another payload": (GroupMeta((piece(1),), push=PUSH), 8, "payload_length"),
    "a pull with a payload": (GroupMeta((piece(1),), pull=PullMeta()), 16, "payload_length"),
    "too many bytes": (GroupMeta((piece(1, 161 << 20),), push=PUSH), 161 << 20, "payload_length"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_group_that_breaks_a_limit_is_refused_and_the_field_named(what: str) -> None:
    meta, payload, field = BROKEN[what]
    with pytest.raises(WireError) as caught:
        check_group(meta, payload)
    assert cast("Any", caught.value).field == field
