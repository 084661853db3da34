"""What the counts may be."""

from __future__ import annotations

from collections.abc import Mapping

Count = int | float | None

AT_MOST: Mapping[str, float] = {
    "ruff": 0,
    "mypy": 0,
    "import_contract": 0,
    "bandit_high": 0,
    "secret_leaks": 0,
    "systemd_exposure_daemon": 1.5,
    "systemd_exposure_worker": 1.5,
    "bad_inputs_wrong": 0,
}
AT_LEAST: Mapping[str, float] = {"bad_inputs_tried": 200}
"""Fewer were never there: a table has not been run."""
FIELDS = (
    "ruff",
    "mypy",
    "import_contract",
    "bandit_high",
    "secret_leaks",
    "systemd_exposure_daemon",
    "systemd_exposure_worker",
    "bad_inputs_tried",
    "bad_inputs_wrong",
)


def off(counts: Mapping[str, Count]) -> list[str]:
    """Which counts are not as they must be, in words; empty where all is well."""
    told = [f"{name} is no field" for name in counts if name not in FIELDS]
    for name in FIELDS:
        count = counts.get(name)
        if count is None:
            told.append(f"{name} was not counted")
        elif count > AT_MOST.get(name, count):
            told.append(f"{name} is {count}, at most {AT_MOST[name]:g}")
        elif count < AT_LEAST.get(name, 0):
            told.append(f"{name} is {count}, at least {AT_LEAST.get(name, 0):g}")
    return told
