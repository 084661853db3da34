"""Every scheduler class of torch, made for an optimizer with two param groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import optim
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

Make = Callable[[optim.Optimizer], Any]


def warm_up(opt: optim.Optimizer) -> lr_scheduler.LRScheduler:
    return lr_scheduler.LinearLR(opt, 0.1, total_iters=4)


SCHEDULERS: dict[str, Make] = {
    "ChainedScheduler": lambda opt: lr_scheduler.ChainedScheduler(
        [warm_up(opt), lr_scheduler.ExponentialLR(opt, 0.9)]
    ),
    "ConstantLR": lambda opt: lr_scheduler.ConstantLR(opt, 0.5, total_iters=3),
    "CosineAnnealingLR": lambda opt: lr_scheduler.CosineAnnealingLR(opt, T_max=7, eta_min=1e-4),
    "CosineAnnealingWarmRestarts": lambda opt: lr_scheduler.CosineAnnealingWarmRestarts(
        opt, T_0=3, T_mult=2
    ),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, [1e-3, 2e-3], [0.01, 0.02], step_size_up=3),
    "ExponentialLR": lambda opt: lr_scheduler.ExponentialLR(opt, 0.9),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(
        opt, [lambda number: 1 / (1 + number), lambda number: 0.95**number]
    ),
    "LinearLR": warm_up,
    "MultiStepLR": lambda opt: lr_scheduler.MultiStepLR(opt, [2, 5, 6], gamma=0.3),
    "MultiplicativeLR": lambda opt: lr_scheduler.MultiplicativeLR(opt, lambda _: 0.9),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=[0.01, 0.02], total_steps=40),
    "PolynomialLR": lambda opt: lr_scheduler.PolynomialLR(opt, total_iters=9, power=2.0),
    "SWALR": lambda opt: SWALR(opt, swa_lr=[0.005, 0.002], anneal_epochs=5),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [
            warm_up(opt),
            lr_scheduler.ConstantLR(opt, 1.0),
            lr_scheduler.CosineAnnealingLR(opt, T_max=20),
        ],
        milestones=[4, 6],
    ),
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, gamma=0.5),
}
"""All that follow from the number of their steps; ReduceLROnPlateau follows from losses."""
