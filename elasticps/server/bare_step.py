"""An optimizer's step without what torch puts around it, which takes as long as a small step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim import optimizer as of_torch

HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
GLOBAL_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")


def bare_step(optimizer: torch.optim.Optimizer) -> None:
    """``optimizer.step()`` with its hooks, and no word of it to torch's profiler."""
    own = vars(optimizer)
    hooked = any(own.get(name) for name in ("step", *HOOKS))
    if hooked or any(getattr(of_torch, name, None) for name in GLOBAL_HOOKS):
        optimizer.step()
    else:
        _bare(type(optimizer))(optimizer)


def _bare(kind: type[torch.optim.Optimizer]) -> Callable[[torch.optim.Optimizer], Any]:
    """The ``step`` of torch's own as its class has it; that of others may be wrapped otherwise."""
    step = kind.step
    is_wrapped = kind.__module__.startswith("torch.optim.") and getattr(step, "hooked", False)
    return getattr(step, "__wrapped__", step) if is_wrapped else step
