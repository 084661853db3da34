"""FTRL-Proximal: "Ad Click Prediction: a View from the Trenches", McMahan et al. 2013.

Its Algorithm 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from elasticps.optimizers.per_parameter import Options, PerParameterOptimizer, check_at_least


class Ftrl(PerParameterOptimizer):
    """Follows the regularized leader, with a rate for each element; ``l1`` makes exact zeros.

    ``lr``, ``beta``, ``l1``, ``l2`` are the paper's alpha, beta, lambda 1, lambda 2. The paper
    begins at zero; here ``z`` begins where it stands for the value that a parameter has. A changed
    ``lr`` is the paper's rate of that step: it moves no weight by itself. A step with an ``lr`` of
    0 changes nothing. Raises ValueError for an option out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        beta: float = 1.0,
        l1: float = 0.0,
        l2: float = 0.0,
        *,
        maximize: bool = False,
    ) -> None:
        check_at_least(0.0, lr=lr, l1=l1, l2=l2)
        if not beta > 0:
            raise ValueError(f"beta is {beta}, must be above 0")
        options = {"lr": lr, "beta": beta, "l1": l1, "l2": l2, "maximize": maximize}
        super().__init__(params, options)

    def update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        group: Options,
        state: dict[str, Any],
    ) -> None:
        lr, beta, l1, l2 = group["lr"], group["beta"], group["l1"], group["l2"]
        if lr == 0:
            return
        if not state:
            state["n"] = torch.zeros_like(parameter)
            state["z"] = parameter.mul(-(beta / lr + l2)).sub_(parameter.sign(), alpha=l1)
            state["lr"] = float(lr)
        n, z = state["n"], state["z"]
        before = n.sqrt().add_(beta).div_(state["lr"])
        after = n.addcmul_(gradient, gradient).sqrt().add_(beta).div_(lr)
        z.add_(gradient).sub_((after - before).mul_(parameter))
        shrunk = z.sign().mul_(z.abs().sub_(l1).clamp_(min=0.0))
        parameter.copy_(shrunk.div_(after.add_(l2)).neg_())
        state["lr"] = float(lr)
