"""The speed that a worker tells: right soon, and not another one for every odd step."""

from __future__ import annotations

from itertools import pairwise

from elasticps.worker.pace import SETTLED_STEPS, Pace


def told(rates: list[float]) -> list[float]:
    pace = Pace()
    pace.stepped(1.0, 1.0)  # a script's first step
    return [pace.stepped(rate, 1.0) for rate in rates]


def test_an_odd_step_and_a_little_drift_move_nothing() -> None:
    assert set(told([100, 101, 40, 99, 104, 98, 100, 102])) == {100}


def test_who_is_slower_now_is_known_after_a_few_steps() -> None:
    assert told([100] * 8 + [25] * 3)[-1] == 25


def test_a_first_step_that_was_a_little_off_is_corrected_once() -> None:
    said = told([93] + [100] * 3 * SETTLED_STEPS)
    assert said[SETTLED_STEPS - 1] == 93
    assert set(said[SETTLED_STEPS + 1 :]) == {100}
    assert set(told([99] + [100] * 3 * SETTLED_STEPS)) == {99}


def test_the_speed_moves_at_most_once_in_many_steps_where_it_is_about_the_same() -> None:
    said = told([100, 104, 97, 103, 96, 105, 98] * 20)
    moves = sum(one != other for one, other in pairwise(said))
    assert moves <= len(said) / SETTLED_STEPS


def test_a_step_without_samples_says_nothing() -> None:
    pace = Pace()
    assert [pace.stepped(count, 1.0) for count in (5.0, 0.0, 8.0)] == [0.0, 0.0, 8.0]
