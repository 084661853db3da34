"""Why a job is as it is, in words: a job that stands still says so."""

from __future__ import annotations

import pytest

from elasticps.core.reasons import standing_still


@pytest.mark.parametrize(
    ("still_s", "step_s", "told"),
    [
        ((), 0.0, ""),
        ((29.0, 100.0), 0.0, ""),  # one of them has stepped
        ((100.0, 47.0), 0.1, "no step for 40 s: `elasticps logs digits`"),
        ((400.0, 301.0), 0.1, "no step for 5 min: `elasticps logs digits`"),
        ((100.0, 100.0), 12.0, ""),  # its steps take that long
    ],
)
def test_a_job_of_which_no_worker_steps_says_for_how_long(
    still_s: tuple[float, ...], step_s: float, told: str
) -> None:
    said = standing_still("digits", still_s, step_s, {})
    assert said.startswith(told)
    assert bool(said) == bool(told)


@pytest.mark.parametrize(
    ("awaited", "told"),
    [
        ({"n2.1": 1}, "waiting for worker n2.1 (rank 1): `elasticps logs digits --rank 1` says"),
        ({"n2.1": None}, "waiting for worker n2.1: `elasticps logs digits` says"),
        ({"n1.1": 0, "n2.1": 1}, "waiting for workers n1.1 (rank 0), n2.1 (rank 1): `elasticps"),
        (dict.fromkeys("abcdef"), "waiting for workers a, b, c, d, 2 others: `elasticps logs"),
    ],
)
def test_a_job_that_stands_still_names_whom_it_waits_for(
    awaited: dict[str, int | None], told: str
) -> None:
    assert told in standing_still("digits", (60.0,), 0.1, awaited)
