"""Entries and the parts that store them."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.ids import BlockId, PlanEpoch, ServerId
from elasticps.core.plan import (
    PART_BLOCKS,
    THIS_WRITE,
    Entry,
    decode_part,
    encode_part,
    part_of,
    parts,
)
from elasticps.errors import StoreError
from tests.support.properties import REPRODUCIBLE

A, B, C = (ServerId(f"{name}/1") for name in "abc")
ENTRY = Entry(block=BlockId(1), primary=A, in_sync=(B,), learners=(C,), epoch=PlanEpoch(7))
SERVERS = st.sampled_from([ServerId(f"node{index}/{index}") for index in range(6)])
REVISION = 900


@st.composite
def consecutive_entries(draw: st.DrawFn) -> list[Entry]:
    first = draw(st.integers(0, 5000))
    held = st.lists(SERVERS, min_size=1, max_size=4, unique=True)
    entries = []
    for block in range(first, first + draw(st.integers(1, 6))):
        servers = draw(held)
        cut = draw(st.integers(1, len(servers)))
        entries.append(
            Entry(
                block=BlockId(block),
                primary=servers[0],
                in_sync=tuple(servers[1:cut]),
                learners=tuple(servers[cut:]),
                epoch=PlanEpoch(draw(st.integers(0, REVISION))),
                fresh=draw(st.booleans()),
                goal=tuple(draw(st.lists(SERVERS, max_size=4, unique=True))),
            )
        )
    return entries


@settings(REPRODUCIBLE)
@given(consecutive_entries())
def test_a_part_reads_back_as_it_was_and_etcd_gives_the_new_epochs(entries: list[Entry]) -> None:
    read = decode_part(encode_part(entries), REVISION)
    assert read == tuple(
        replace(
            entry,
            epoch=entry.epoch or PlanEpoch(REVISION),
            since=entry.since or PlanEpoch(REVISION),
        )
        for entry in entries
    )
    assert all(entry.epoch > 0 for entry in read)


def test_parts_hold_neighbouring_blocks_and_stay_small() -> None:
    entries = [
        replace(ENTRY, block=BlockId(block), since=PlanEpoch(3))
        for block in range(2 * PART_BLOCKS + 1)
    ]
    by_part = parts(entries)
    assert {part: len(group) for part, group in by_part.items()} == {
        0: PART_BLOCKS,
        1: PART_BLOCKS,
        2: 1,
    }
    for part, group in by_part.items():
        assert {part_of(entry.block) for entry in group} == {part}
        value = encode_part(group)
        assert len(value) < 256 * 1024
        assert decode_part(value, REVISION) == group


@pytest.mark.parametrize(
    ("primary", "in_sync", "learners", "fresh_stays"),
    [
        (A, (B, C), (), True),
        (A, (), (C,), True),
        (A, (B,), (), True),
        (B, (A,), (C,), False),
        (C, (), (), False),
    ],
)
def test_a_changed_entry_gets_the_epoch_of_its_write(
    primary: ServerId,
    in_sync: tuple[ServerId, ...],
    learners: tuple[ServerId, ...],
    fresh_stays: bool,
) -> None:
    """A primary may miss the first plan, so its first one is marked until another leads."""
    for fresh in (False, True):
        changed = replace(ENTRY, fresh=fresh).rewritten(
            primary=primary, in_sync=in_sync, learners=learners
        )
        assert changed == Entry(
            block=ENTRY.block,
            primary=primary,
            in_sync=in_sync,
            learners=learners,
            epoch=THIS_WRITE,
            fresh=fresh and fresh_stays,
        )


def test_a_primarys_term_begins_with_the_write_that_makes_it_lead() -> None:
    entry = replace(ENTRY, since=PlanEpoch(3))
    assert entry.rewritten(primary=A, in_sync=(C,), learners=()).since == 3
    assert entry.rewritten(primary=B, in_sync=(A,), learners=()).since == THIS_WRITE


def test_an_unchanged_entry_is_the_same_object() -> None:
    fresh = replace(ENTRY, fresh=True)
    for entry in (ENTRY, fresh):
        assert entry.rewritten(primary=A, in_sync=(B,), learners=(C,)) is entry


def test_another_goal_alone_needs_no_new_epoch() -> None:
    noted = ENTRY.rewritten(primary=A, in_sync=(B,), learners=(C,), goal=(C, A))
    assert noted == replace(ENTRY, goal=(C, A))
    assert noted.rewritten(primary=C, in_sync=(A,), learners=()).goal == ()


def test_holders_are_those_that_have_every_acknowledged_op() -> None:
    assert ENTRY.holders == (A, B)
    assert ENTRY.servers == (A, B, C)


STORED = {"first": 3, "servers": ["a/1", "b/1"], "entries": [(0, [1], [], 5, False)]}


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        b"not ours",
        msgspec.msgpack.encode([]),
        msgspec.msgpack.encode({}),
        msgspec.msgpack.encode({**STORED, "entries": [(2, [], [], 5, False)]}),
        msgspec.msgpack.encode({**STORED, "entries": [(-1, [], [], 5, False)]}),
        msgspec.msgpack.encode({**STORED, "entries": [(0, [-2], [], 5, False)]}),
        msgspec.msgpack.encode({**STORED, "entries": [(0, [], [7], 5, False)]}),
        msgspec.msgpack.encode({**STORED, "entries": [(0, [], [], -5, False)]}),
        msgspec.msgpack.encode({**STORED, "entries": [(0, [], [], 5)]}),
        msgspec.msgpack.encode({**STORED, "entries": [(0, [], [], "5", False)]}),
        msgspec.msgpack.encode({**STORED, "first": -1}),
        msgspec.msgpack.encode({**STORED, "servers": 3}),
        msgspec.msgpack.encode(STORED)[:-1],
        msgspec.msgpack.encode(STORED).replace(b"a/1", b"a\xff\xfe"),
        b"\x81\xa1z" + b"\x91" * 100_000,
    ],
)
def test_a_value_that_is_not_ours_is_a_store_error(value: bytes) -> None:
    with pytest.raises(StoreError) as refused:
        decode_part(value, REVISION)
    assert refused.value.field == "plan"


@settings(REPRODUCIBLE, max_examples=300)
@given(st.data())
def test_a_damaged_part_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    value = bytearray(encode_part([ENTRY, replace(ENTRY, block=BlockId(2))]))
    for _ in range(data.draw(st.integers(1, 3))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    try:
        entries = decode_part(bytes(value), REVISION)
    except StoreError:
        return
    assert all(entry.block >= 0 and entry.epoch > 0 for entry in entries)
