"""Automatic mixed precision: what a ``torch.amp.GradScaler`` leaves for ``step`` to do.

A scaler that finds an infinity or NaN does not call ``step`` of an ordinary optimizer. Here that
worker would be missing from a round that all others wait in, so the other protocol of
``GradScaler.step`` is used: it calls always, with the attributes ``grad_scale`` and ``found_inf``.
"""

from __future__ import annotations

import torch


def unscale(optimizer: torch.optim.Optimizer) -> None:
    """Divide the gradients by the scale that they still have; drop all where one overflowed.

    Without a gradient the worker's samples count as ones with a gradient of zero; alone in its
    round it changes nothing, neither values nor the optimizer's state, as torch would skip a step.
    """
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None:  # no scaler calls
        return
    scale = getattr(optimizer, "grad_scale", None)
    parameters = [item for group in optimizer.param_groups for item in group["params"]]
    if float(found_inf):
        for parameter in parameters:
            parameter.grad = None
    elif scale is not None:
        inverse = scale.double().reciprocal().float()
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.mul_(inverse.to(parameter.grad.device))
