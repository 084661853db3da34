"""Each case of the strategies' contract catches the plugin that breaks it, and names it."""

from __future__ import annotations

import pytest

from elasticps.api.plugins import STRATEGIES
from elasticps.testing import strategy_cases
from elasticps.testing.kit import Case, ContractBroken, subject_of
from tests.support.distributions import Install, install

__all__ = ["install"]

STRATEGY = """
    import threading

    import torch

    from elasticps import Strategy

    class Odd(Strategy):
        steps_per_round = 1

        def step(self, worker):
            BODY
"""
BROKEN = [
    ("two_workers_learn_from_all_samples", "pass", "the strategy ended no round"),
    ("two_workers_learn_from_all_samples", "worker.exchange({})", "the loss is"),
    ("two_workers_learn_from_all_samples", "1 / 0", "ZeroDivisionError"),
    (
        "fixed_run_is_repeatable",
        "worker.exchange({k: torch.randn_like(p) for k, p in worker.parameters.items()})",
        "ended with other bits",
    ),
    (
        "worker_that_is_asked_to_leave_leaves",
        "worker.exchange(); worker.leaving and threading.Event().wait()",
        "did not end within 4 s",
    ),
]


@pytest.mark.parametrize(("case", "body", "reason"), BROKEN)
def test_broken_strategy_is_caught_and_named(
    install: Install, monkeypatch: pytest.MonkeyPatch, case: str, body: str, reason: str
) -> None:
    monkeypatch.setattr(strategy_cases, "LIMIT_S", 4.0)
    source = STRATEGY.replace("BODY", body)
    install("acme-odd", "acme", source, {STRATEGIES: {"odd": "acme:Odd"}})
    with pytest.raises(ContractBroken) as caught:
        subject_of("odd").check(Case(check=getattr(strategy_cases, case)))
    assert caught.value.where == "plugin odd of acme-odd 1.0 (acme:Odd)"
    assert reason in caught.value.what


@pytest.mark.parametrize("steps", [0, 1.5, "many"])
def test_steps_of_a_round_are_a_whole_number(install: Install, steps: object) -> None:
    source = STRATEGY.replace("BODY", "pass").replace("= 1", f"= {steps!r}")
    install("acme-odd", "acme", source, {STRATEGIES: {"odd": "acme:Odd"}})
    with pytest.raises(ContractBroken, match="steps_per_round is"):
        subject_of("odd").check(Case(check=strategy_cases.says_how_many_steps_a_round_has))
