"""Cuts, microbatches and crews: numbers alone, held against what could be tried one by one."""

from __future__ import annotations

from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from elasticps.strategies.crew import crew_of, hands_in_for
from elasticps.strategies.cut import best_cut, rows_of_microbatches

costs = st.lists(st.integers(0, 20).map(float), min_size=1, max_size=8)


def all_cuts(layers: int, stages: int, within_first: int) -> list[tuple[int, ...]]:
    inner = combinations(range(1, layers), stages - 1)
    return [
        (0, *bounds, layers) for bounds in inner if (bounds[0] if bounds else layers) > within_first
    ]


def stages_of(cut: tuple[int, ...], numbers: list[float]) -> list[float]:
    return [sum(numbers[one:other]) for one, other in pairwise(cut)]


@given(costs, st.data())
def test_the_cut_is_the_best_of_all_that_fit(seconds: list[float], data: st.DataObject) -> None:
    count = len(seconds)
    sizes = data.draw(st.lists(st.integers(1, 9).map(float), min_size=count, max_size=count))
    limits = data.draw(st.lists(st.integers(1, 40).map(float), min_size=1, max_size=count))
    within_first = data.draw(st.integers(0, count - 1))
    fitting = [
        cut
        for cut in all_cuts(count, len(limits), within_first)
        if all(size <= most for size, most in zip(stages_of(cut, sizes), limits, strict=True))
    ]

    cut = best_cut(seconds, sizes, limits, within_first=within_first)

    if not fitting:
        assert cut is None
        return
    assert cut in fitting
    assert max(stages_of(cut, seconds)) == min(max(stages_of(each, seconds)) for each in fitting)


def test_a_cut_of_equal_layers_is_even() -> None:
    assert best_cut([1.0] * 12, [0.0] * 12, [1.0] * 3) == (0, 4, 8, 12)


def test_hundreds_of_layers_are_cut_in_a_moment() -> None:
    cut = best_cut([1.0] * 300, [1.0] * 300, [300.0] * 6)
    assert cut is not None
    assert max(stages_of(cut, [1.0] * 300)) == 50


@given(st.integers(1, 60), st.integers(1, 12))
def test_every_sample_is_in_one_microbatch_before_its_padding(count: int, parts: int) -> None:
    rows, real = rows_of_microbatches(count, parts)
    assert len(rows) == len(real) == min(count, parts)
    assert len({len(each) for each in rows}) == 1
    assert [row for each, number in zip(rows, real, strict=True) for row in each[:number]] == list(
        range(count)
    )
    assert max(real) - min(real) <= 1
    assert all(0 <= row < count for each in rows for row in each)


@given(st.integers(1, 20), st.integers(1, 20))
def test_every_worker_is_in_one_crew_and_each_crew_knows_the_same(world: int, stages: int) -> None:
    crews = [crew_of(rank, world, stages) for rank in range(world)]
    assert sorted(rank for crew in set(crews) for rank in crew.ranks) == list(range(world))
    for rank, crew in enumerate(crews):
        assert rank in crew.ranks
        assert crew.stages == min(stages, world)
        assert {crew.stage_of(each) for each in crew.ranks} >= set(range(crew.stages))
    sizes = [len(crew.ranks) for crew in set(crews)]
    assert max(sizes) - min(sizes) <= 1
    assert crews[0].head == 0


@given(st.sets(st.integers(0, 9), min_size=1), st.integers(1, 10))
def test_each_stage_without_samples_has_one_who_pushes_for_it(some: set[int], count: int) -> None:
    contributors = sorted(some)
    hands = hands_in_for(contributors, range(count))
    assert hands.keys() == set(range(count)) - some
    assert set(hands.values()) <= some
