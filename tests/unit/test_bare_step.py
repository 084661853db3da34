"""A step without torch's wrapping is the step, for torch's optimizers and for anybody's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from elasticps.server.bare_step import bare_step

Made = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


class Decorated(torch.optim.SGD):
    """One of somebody else's, with a decorator that its step cannot do without."""

    @torch.no_grad()  # type: ignore[misc]
    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            parameter.add_(parameter.grad, alpha=-self.param_groups[0]["lr"])


KINDS: dict[str, Made] = {
    "sgd": lambda items: torch.optim.SGD(items, lr=0.1, momentum=0.9),
    "adamw, fused": lambda items: torch.optim.AdamW(items, lr=0.1, fused=True),
    "adagrad": lambda items: torch.optim.Adagrad(items, lr=0.1),
    "another's": lambda items: Decorated(items, lr=0.1),
}


def trained(made: Made, step: Callable[[torch.optim.Optimizer], object]) -> torch.Tensor:
    value = torch.nn.Parameter(torch.linspace(-1.0, 1.0, 50))
    optimizer = made([value])
    for number in range(3):
        value.grad = torch.full((50,), float(number + 1))
        step(optimizer)
    return value.detach()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_step(kind: str) -> None:
    bare = trained(KINDS[kind], bare_step)
    assert torch.equal(bare, trained(KINDS[kind], lambda optimizer: optimizer.step()))


@pytest.mark.parametrize("where", ["its own", "everybody's", "another step"])
def test_hooks_are_called(where: str) -> None:
    value = torch.nn.Parameter(torch.zeros(3))
    value.grad = torch.ones(3)
    optimizer = torch.optim.SGD([value], lr=0.1)
    called: list[object] = []
    hook = lambda *_: called.append(1)  # noqa: E731
    if where == "its own":
        handle = optimizer.register_step_post_hook(hook)
    elif where == "everybody's":
        handle = register_optimizer_step_post_hook(hook)
    else:
        optimizer.step = hook  # type: ignore[method-assign, assignment]
    bare_step(optimizer)
    if where == "everybody's":
        handle.remove()
    assert called == [1]
