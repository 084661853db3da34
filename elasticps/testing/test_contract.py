"""What ``pytest_plugin`` collects: one test for each plugin under test and case of its contract."""

from __future__ import annotations

import pytest

from elasticps.testing.kit import Case, ContractBroken, Subject


def test_contract(subject: Subject, case: Case, report: list[str]) -> None:
    try:
        line = subject.check(case)
    except ContractBroken as error:
        if error.__cause__ is not None:
            raise  # where in the plugin it was raised is worth seeing
        pytest.fail(str(error), pytrace=False)
    if line:
        report.append(f"{subject.group.kind} {subject.name}: {line}")
