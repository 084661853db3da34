"""LAMB: "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes", You et al. 2020.

Algorithm 2, with the identity for its scaling function phi.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from elasticps.optimizers.per_parameter import (
    Options,
    PerParameterOptimizer,
    check_at_least,
    check_betas,
)


class Lamb(PerParameterOptimizer):
    """Adam's step, scaled for each parameter to the norm of that parameter.

    A parameter is a layer of the paper, so its whole must be at hand. ``adapt`` False leaves a
    group's steps as they are, as is usual for biases and the parameters of norms; with it go a
    ``weight_decay`` of 0. The scale is 1 where either norm is 0. ``bias_correction`` as in Adam.
    Raises ValueError for an option out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        *,
        adapt: bool = True,
        bias_correction: bool = True,
        maximize: bool = False,
    ) -> None:
        check_at_least(0.0, lr=lr, eps=eps, weight_decay=weight_decay)
        check_betas(betas)
        options = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": adapt,
            "bias_correction": bias_correction,
            "maximize": maximize,
        }
        super().__init__(params, options)

    def update(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        group: Options,
        state: dict[str, Any],
    ) -> None:
        beta1, beta2 = group["betas"]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        step = state["step"].item() if group["bias_correction"] else float("inf")
        first = state["exp_avg"].lerp_(gradient, 1 - beta1) / (1 - beta1**step)
        second = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        ratio = first.div_((second / (1 - beta2**step)).sqrt_().add_(group["eps"]))
        direction = ratio.add_(parameter, alpha=group["weight_decay"])
        scale = trust_ratio(parameter, direction) if group["adapt"] else 1.0
        parameter.add_(direction, alpha=-group["lr"] * scale)


def trust_ratio(parameter: torch.Tensor, direction: torch.Tensor) -> float:
    """The parameter's norm by the direction's; 1 where either is 0, so that zeros can be left."""
    norm = float(torch.linalg.vector_norm(parameter))
    other = float(torch.linalg.vector_norm(direction))
    return norm / other if norm > 0 and other > 0 else 1.0
