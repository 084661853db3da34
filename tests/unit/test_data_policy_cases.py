"""Each case of the data policies' contract catches the plugin that breaks it, and names it."""

from __future__ import annotations

import pytest

from elasticps.api.plugins import DATA_POLICIES
from elasticps.testing import data_policy_cases
from elasticps.testing.kit import Case, ContractBroken, subject_of
from tests.support.distributions import Install, install

__all__ = ["install"]

POLICY = """
    from elasticps.api.data_policy import DataPolicy, Loans
    from elasticps.core.lending import Dynamic
    from elasticps.core.ranges import Range

    class Odd(DataPolicy):
        calls = 0

        def lend(self, asked):
            loans = Dynamic().lend(asked)
            self.calls += 1
            BREAK
            return loans
"""
BROKEN = [
    ("every_sample_is_read_once", "loans = Loans(lent={})", "lends nothing where nobody holds any"),
    (
        "every_sample_is_read_once",
        "loans = Loans(lent=dict.fromkeys(asked.borrowers, loans.lent[asked.borrowers[0]]))",
        " are due; asked",
    ),
    (
        "every_sample_is_read_once",
        "loans = Loans(lent={99: asked.unread})",
        "lends to [99], who do not borrow",
    ),
    (
        "every_sample_is_read_once",
        "loans = Loans(lent={asked.borrowers[0]: (Range(5, 5),)})",
        "is no range",
    ),
    ("every_sample_is_read_once", "1 / 0", "ZeroDivisionError"),
    (
        "equal_questions_have_equal_answers",
        "loans = Loans(lent=loans.lent, owned={asked.members[0]: (Range(0, self.calls),)})",
        "in two ways",
    ),
]


@pytest.mark.parametrize(("case", "breaks", "reason"), BROKEN)
def test_broken_data_policy_is_caught_and_named(
    install: Install, case: str, breaks: str, reason: str
) -> None:
    source = POLICY.replace("BREAK", breaks)
    install("acme-odd", "acme", source, {DATA_POLICIES: {"odd": "acme:Odd"}})
    with pytest.raises(ContractBroken) as caught:
        subject_of("odd").check(Case(check=getattr(data_policy_cases, case)))
    assert reason in str(caught.value)
    assert caught.value.where == "plugin odd of acme-odd 1.0 (acme:Odd)"
