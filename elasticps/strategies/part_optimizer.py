"""An optimizer's step for a part of its parameters, with its options and its state."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, MutableMapping
from typing import Any

import torch


class PartOptimizer(torch.optim.Optimizer):
    """``whole`` for some of its parameters: a step of this one is that one's, with no gradient
    elsewhere. It has neither options nor state of its own, but ``whole``'s.
    """

    def __init__(self, whole: torch.optim.Optimizer, part: Collection[torch.Tensor]) -> None:
        self._whole = whole
        self._part = frozenset(part)
        super().__init__(self._groups(), dict(whole.defaults))
        self.state = _PartState(whole, self._part)  # type: ignore[assignment]

    def follow(self) -> None:
        """Take over the options that ``whole`` has now."""
        self.param_groups = self._groups()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; returns what ``closure`` returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hidden = [(item, item.grad) for item in self._others()]
        try:
            for item, _ in hidden:
                item.grad = None
            self._whole.step()
        finally:
            for item, gradient in hidden:
                item.grad = gradient
        return loss

    def _others(self) -> list[torch.Tensor]:
        groups = self._whole.param_groups
        return [item for group in groups for item in group["params"] if item not in self._part]

    def _groups(self) -> list[dict[str, Any]]:
        groups = [
            {**group, "params": [item for item in group["params"] if item in self._part]}
            for group in self._whole.param_groups
        ]
        return [group for group in groups if group["params"]]


class _PartState(MutableMapping[torch.Tensor, Any]):
    """The part's rows of the whole optimizer's state."""

    def __init__(self, whole: torch.optim.Optimizer, part: frozenset[torch.Tensor]) -> None:
        self._whole = whole
        self._part = part

    def __getitem__(self, item: torch.Tensor) -> Any:
        if item not in self._part:
            raise KeyError(item)
        return self._whole.state[item]

    def __setitem__(self, item: torch.Tensor, row: Any) -> None:
        if item not in self._part:
            raise KeyError(item)
        self._whole.state[item] = row

    def __delitem__(self, item: torch.Tensor) -> None:
        if item not in self._part:
            raise KeyError(item)
        del self._whole.state[item]

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter([item for item in self._whole.state if item in self._part])

    def __len__(self) -> int:
        return sum(item in self._part for item in self._whole.state)
