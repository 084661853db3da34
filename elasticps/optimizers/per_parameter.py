"""The step that the optimizers of this package share: one parameter after the other."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import torch

Options = dict[str, Any]


class PerParameterOptimizer(torch.optim.Optimizer):
    """Calls ``update`` for each parameter that has a gradient.

    A group has an option ``maximize``: then ``update`` sees the gradient with its sign changed.
    """

    @abstractmethod
    def update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        group: Options,
        state: dict[str, Any],
    ) -> None:
        """Change ``parameter`` and ``state`` (empty at first) in place, never ``gradient``."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what ``closure`` returns. Raises RuntimeError if sparse."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if gradient.is_sparse:
                    raise RuntimeError(f"{type(self).__name__} takes no sparse gradients")
                given = -gradient if group["maximize"] else gradient
                self.update(parameter, given, group, self.state[parameter])
        return loss


def check_at_least(least: float, **options: float) -> None:
    """Raise ValueError, naming the option, for one that is below ``least`` or no number."""
    for name, number in options.items():
        if not number >= least:
            raise ValueError(f"{name} is {number}, must be at least {least}")


def check_betas(betas: tuple[float, float]) -> None:
    """Raise ValueError unless both are at least 0 and below 1."""
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        raise ValueError(f"betas are {betas}, must be two of at least 0 and below 1")
