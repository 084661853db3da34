"""Samples as arithmetic: lent in batches, given back, cut into slices."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.ranges import DataSpec, Range, Supply, divide, take
from tests.support.ledger_answers import positions
from tests.support.properties import REPRODUCIBLE

SPECS = st.builds(
    DataSpec,
    size=st.integers(1, 25),
    batch_size=st.integers(1, 9),
    epochs=st.integers(1, 3),
    seed=st.just(0),
)
RANGES = st.builds(
    lambda start, length: Range(start, start + length), st.integers(0, 50), st.integers(1, 9)
)


def spec(size: int, batch_size: int, epochs: int = 1) -> DataSpec:
    return DataSpec(size, batch_size, epochs, seed=0)


@pytest.mark.parametrize(
    ("data", "supply", "batch", "left"),
    [
        (spec(10, 4), Supply(), [(0, 4)], Supply(4)),
        (spec(10, 4), Supply(8), [(8, 10)], Supply(10)),
        (spec(10, 4), Supply(10), [], Supply(10)),
        (spec(10, 4, epochs=2), Supply(10), [(10, 14)], Supply(14)),
        (spec(10, 4, epochs=2), Supply(8), [(8, 10)], Supply(10)),
        (spec(10, 40, epochs=2), Supply(), [(0, 10)], Supply(10)),
        (spec(10, 4), Supply(6, (Range(1, 3),)), [(1, 3), (6, 8)], Supply(8)),
        (spec(10, 4), Supply(8, (Range(0, 9),)), [(0, 4)], Supply(8, (Range(4, 9),))),
        (spec(10, 4), Supply(10, (Range(2, 3), Range(5, 6))), [(2, 3), (5, 6)], Supply(10)),
        (spec(10, 2), Supply(8, (Range(2, 4), Range(5, 6))), [(2, 4)], Supply(8, (Range(5, 6),))),
    ],
)
def test_a_batch_takes_what_was_given_back_first_and_ends_with_its_data_epoch(
    data: DataSpec, supply: Supply, batch: list[tuple[int, int]], left: Supply
) -> None:
    assert take(data, supply) == (tuple(Range(*pair) for pair in batch), left)


@settings(REPRODUCIBLE)
@given(SPECS)
def test_every_sample_is_lent_once_a_data_epoch_when_nobody_dies(data: DataSpec) -> None:
    supply, lent = Supply(), list[int]()
    while not supply.spent(data):
        batch, supply = take(data, supply)
        taken = positions(batch)
        assert 1 <= len(taken) <= data.batch_size
        assert len({position // data.size for position in taken}) == 1
        lent += taken
    assert lent == list(range(data.size * data.epochs))
    assert take(data, supply) == ((), supply)


@settings(REPRODUCIBLE)
@given(SPECS, st.data())
def test_what_dead_workers_held_is_lent_again_and_nothing_is_lost(
    data: DataSpec, drawn: st.DataObject
) -> None:
    supply, committed = Supply(), Counter[int]()
    deaths = 0
    while not supply.spent(data):
        batch, supply = take(data, supply)
        assert 1 <= len(positions(batch)) <= data.batch_size
        for share in divide(batch, drawn.draw(st.integers(1, 3))):
            if deaths < 6 and drawn.draw(st.booleans()):
                deaths += 1
                supply = supply.returned(share)
            else:
                committed.update(positions(share))
    assert committed == Counter(range(data.size * data.epochs))


@settings(REPRODUCIBLE, max_examples=200)
@given(st.lists(RANGES, max_size=5).map(tuple), st.integers(1, 8))
def test_slices_are_near_equal_and_together_the_batch_in_order(
    batch: tuple[Range, ...], shares: int
) -> None:
    slices = divide(batch, shares)
    sizes = [len(positions(part)) for part in slices]
    assert len(slices) == shares
    assert max(sizes) - min(sizes) <= 1
    assert [sample for part in slices for sample in positions(part)] == positions(batch)
    assert all(len(piece) > 0 for part in slices for piece in part)


def test_a_data_set_is_spent_only_when_nothing_was_given_back() -> None:
    data = spec(10, 4, epochs=2)
    assert not Supply(19).spent(data)
    assert Supply(20).spent(data)
    assert not Supply(20, (Range(3, 4),)).spent(data)
