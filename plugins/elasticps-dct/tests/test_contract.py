"""The plugin keeps elasticps's contract for its group, with several choices of its options."""

from __future__ import annotations

import pytest

from elasticps.testing.kit import Case, Subject, cases_of, subject_of

SUBJECTS = [subject_of(text, "codecs") for text in ("dct", "dct:chunk=7,k=7", "dct:chunk=256,k=1")]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.text)
@pytest.mark.parametrize("case", cases_of(SUBJECTS[0].group), ids=lambda case: case.name)
def test_contract(subject: Subject, case: Case) -> None:
    subject.check(case)
