"""Several optimizers in one job: each param group names its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from elasticps.api.optimizer import Optimizer, ParamGroup
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.errors import UsageError

NAME = "by-group"
KEY = "optimizer"


class ByGroup(torch.optim.Optimizer):
    """Steps each param group with the optimizer that ``groups[...]["optimizer"]`` names.

    ``options["optimizer"]`` is that of groups that name none. The other options go to all, a
    group's own to its own, as torch's param groups do: so Adagrad's ``initial_accumulator_value``
    counts in ``options`` alone. Raises UsageError for a group without a name, PluginError for a
    name that is no plugin's.
    """

    def __init__(self, groups: Sequence[ParamGroup], options: Mapping[str, Any]) -> None:
        self._parts = [_part(group, options) for group in groups]
        super().__init__([part.param_groups[0] for part in self._parts], dict(options))
        for part in self._parts:
            self.state.update(part.state)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self._parts, self.param_groups, strict=True):
            # A loaded state dict has replaced both.
            part.param_groups, part.state = [group], self.state
            part.step()
        return loss


class ByGroupOptimizer(Optimizer):
    """The plugin. Some of its optimizers may need whole parameters, so all of them get these."""

    elementwise = False

    def create(
        self, groups: Sequence[ParamGroup], options: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        return ByGroup(groups, options)


def _part(group: ParamGroup, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    name = group.get(KEY, options.get(KEY))
    if not isinstance(name, str) or name == NAME:
        raise UsageError(
            f"a param group of {NAME} names {name!r} as its optimizer",
            field=KEY,
            limit="the name of another optimizer",
            hint='groups=[{"params": ..., "optimizer": "adamw", "lr": 1e-3}, ...]',
        )
    plugin = load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]
    return plugin.create([group], {key: item for key, item in options.items() if key != KEY})
