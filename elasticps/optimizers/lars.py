"""LARS: "Large Batch Training of Convolutional Networks", You et al. 2017, Algorithm 1."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from elasticps.optimizers.per_parameter import Options, PerParameterOptimizer, check_at_least


class Lars(PerParameterOptimizer):
    """SGD with momentum, whose rate is scaled for each parameter to its norm (equation 6).

    A parameter is a layer of the paper, so its whole must be at hand. ``adapt`` False leaves a
    group's rate as it is, as is usual for biases and the parameters of norms; with it go a
    ``weight_decay`` of 0. The scale is 1 where either norm is 0.
    Raises ValueError for an option out of its range.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 0.0005,
        trust_coefficient: float = 0.001,
        *,
        adapt: bool = True,
        maximize: bool = False,
    ) -> None:
        check_at_least(0.0, lr=lr, momentum=momentum, weight_decay=weight_decay)
        check_at_least(0.0, trust_coefficient=trust_coefficient)
        options = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "adapt": adapt,
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
        if not state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        rate = group["lr"] * (_scale(parameter, gradient, group) if group["adapt"] else 1.0)
        direction = gradient.add(parameter, alpha=group["weight_decay"])
        momentum = state["momentum_buffer"].mul_(group["momentum"]).add_(direction, alpha=rate)
        parameter.sub_(momentum)


def _scale(parameter: torch.Tensor, gradient: torch.Tensor, group: Options) -> float:
    norm = float(torch.linalg.vector_norm(parameter))
    other = float(torch.linalg.vector_norm(gradient))
    if norm == 0 or other == 0:
        return 1.0
    scale: float = group["trust_coefficient"] * norm / (other + group["weight_decay"] * norm)
    return scale
