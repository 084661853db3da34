"""Each case of the placements' contract catches the plugin that breaks it, and names it."""

from __future__ import annotations

import pytest

from elasticps.api.plugins import PLACEMENTS
from elasticps.testing import placement_cases
from elasticps.testing.kit import Case, ContractBroken, subject_of
from tests.support.distributions import Install, install

__all__ = ["install"]

PLACEMENT = """
    from elasticps.api.placement import Placement

    class Odd(Placement):
        def propose(self, situation):
            servers = [site.server for site in situation.sites]
            blocks = [each.block for each in situation.blocks]
            return PROPOSAL
"""
BROKEN = [
    ("every_proposal_is_sound", "{99: servers[:1]}", "block 99 is not the job's"),
    ("every_proposal_is_sound", "{block: ['gone/1'] for block in blocks}", "no server that may"),
    ("every_proposal_is_sound", "{block: servers for block in blocks}", "replicas where"),
    ("every_proposal_is_sound", "None", "NoneType"),
    ("every_proposal_is_sound", "1 / 0", "ZeroDivisionError"),
    (
        "blocks_come_to_rest",
        "{each.block: each.destined[1:] + each.destined[:1] for each in situation.blocks}",
        "still moves after",
    ),
]


@pytest.mark.parametrize(("case", "proposal", "reason"), BROKEN)
def test_broken_placement_is_caught_and_named(
    install: Install, case: str, proposal: str, reason: str
) -> None:
    source = PLACEMENT.replace("PROPOSAL", proposal)
    install("acme-odd", "acme", source, {PLACEMENTS: {"odd": "acme:Odd"}})
    with pytest.raises(ContractBroken) as caught:
        subject_of("odd").check(Case(check=getattr(placement_cases, case)))
    assert reason in str(caught.value)
    assert caught.value.where == "plugin odd of acme-odd 1.0 (acme:Odd)"
