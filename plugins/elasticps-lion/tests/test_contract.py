"""The plugin keeps elasticps's contract for its group."""

from __future__ import annotations

import pytest

from elasticps.testing.kit import Case, cases_of, subject_of

SUBJECT = subject_of("lion:lr=0.01,weight_decay=0.1", "optimizers")


@pytest.mark.parametrize("case", cases_of(SUBJECT.group), ids=lambda case: case.name)
def test_contract(case: Case) -> None:
    SUBJECT.check(case)
