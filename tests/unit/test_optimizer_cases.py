"""Each case of the optimizers' contract catches the plugin that breaks it, and names it."""

from __future__ import annotations

import pytest

from elasticps.api.plugins import OPTIMIZERS
from elasticps.testing import optimizer_cases
from elasticps.testing.kit import Case, ContractBroken, cases_of, subject_of
from tests.support.distributions import Install, install

__all__ = ["install"]

OPTIMIZER = """
    import torch
    from elasticps import Optimizer, TorchOptimizer

    class Odd(torch.optim.SGD):
        def __init__(self, params, lr=0.1, **options):
            super().__init__(params, lr=lr)
            self.kept = {}

        @torch.no_grad()
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.update(p, p.grad, group)

        def update(self, p, g, group):
            BODY

    plugin = TorchOptimizer(Odd)
"""
UPDATE = "p.add_(g, alpha=-group['lr'])"
BROKEN = [
    ("unknown_options_are_refused", UPDATE, "takes an option"),
    ("gradients_are_not_written_to", "p.sub_(g.mul_(group['lr']))", "writes into the gradient"),
    ("replicas_are_equal_bit_for_bit", "p.add_(torch.randn(p.shape))", "two replicas differ"),
    ("options_are_plain_and_change_by_group", "p.add_(g, alpha=-0.1)", "changes nothing"),
    ("pieces_are_updated_as_the_whole", "p.sub_(g / (1 + g.norm()))", "is it element-wise?"),
    (
        "state_is_tensors_and_plain_numbers",
        "self.state[p]['value'] = p.clone()",
        "a key 'value', which is the block's own",
    ),
    (
        "state_is_tensors_and_plain_numbers",
        "self.state[p]['names'] = ['a']",
        "state names is a list, which cannot move with a block",
    ),
    (
        "state_is_tensors_and_plain_numbers",
        "self.state[p]['big'] = torch.zeros(p.numel() * 20)",
        "limit: 16 times the block",
    ),
    (
        "block_that_moves_goes_on_as_if_it_had_not",
        "n = self.kept['n'] = self.kept.get('n', 0) + 1; p.add_(g, alpha=-group['lr'] / n)",
        "differ once the block has moved",
    ),
    (
        "odd_shapes_and_dtypes_keep_theirs",
        "p.add_(g, alpha=-group['lr']).div_(0)",
        "not finite",
    ),
    (
        "odd_shapes_and_dtypes_keep_theirs",
        "assert p.numel() % 2 == 1",
        "AssertionError",
    ),
    (
        "checkpoint_round_trip_changes_nothing",
        "n = self.kept['n'] = self.kept.get('n', 0) + 1; p.add_(g, alpha=-group['lr'] / n)",
        "steps after a checkpoint differ",
    ),
]


def case_named(name: str) -> Case:
    return Case(check=getattr(optimizer_cases, name))


@pytest.mark.parametrize(("case", "body", "reason"), BROKEN)
def test_broken_optimizer_is_caught_and_named(
    install: Install, case: str, body: str, reason: str
) -> None:
    source = OPTIMIZER.replace("BODY", body)
    install("acme-odd", "acme", source, {OPTIMIZERS: {"odd": "acme:plugin"}})
    subject = subject_of("odd")
    with pytest.raises(ContractBroken) as caught:
        subject.check(case_named(case))
    assert caught.value.where == "plugin odd of acme-odd 1.0 (acme:plugin)"
    assert caught.value.what.startswith(case.replace("_", " "))
    assert reason in str(caught.value)


def test_every_case_is_in_the_table() -> None:
    table = {case.check.__name__ for case in cases_of(subject_of("sgd").group)}
    assert table >= {name for name, _, _ in BROKEN}
    assert "loads_as_its_contract" in table
