"""Every plugin that is installed here keeps its contract: the kit on all of them, in one run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from elasticps.api.plugins import discover
from elasticps.testing.kit import CASES_OF, cases_of, subject_of

LIMIT_S = 280
CHOICE = {"by-group": "by-group:optimizer=adamw"}
"""Of those that cannot be chosen by their name alone."""


def kit(cwd: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "elasticps.testing", "-q", *options],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


EACH_KIND = ["adamw", "int8", "data-parallel", "load-aware", "static"]


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize("names", [EACH_KIND, pytest.param([], marks=pytest.mark.long)])
def test_every_installed_plugin_keeps_its_contract(tmp_path: Path, names: list[str]) -> None:
    names = names or [plugin.name for group in CASES_OF for plugin in discover(group)]
    ran = kit(tmp_path, *(f"--elasticps-plugin={CHOICE.get(name, name)}" for name in names))
    assert ran.returncode == 0, ran.stdout + ran.stderr
    passed = re.search(r"(\d+) passed", ran.stdout)
    assert passed is not None
    cases = (cases_of(subject_of(CHOICE.get(name, name)).group) for name in names)
    assert int(passed[1]) == sum(map(len, cases))


def test_a_wrong_name_is_told_with_the_near_one(tmp_path: Path) -> None:
    ran = kit(tmp_path, "--elasticps-plugin=adanw")
    assert ran.returncode != 0
    assert "did you mean adamw?" in ran.stdout + ran.stderr
