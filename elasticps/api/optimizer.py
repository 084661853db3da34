"""The contract of an optimizer plugin (entry-point group ``elasticps.optimizers``)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

ParamGroup = dict[str, Any]
"""As ``torch.optim`` has them: ``params`` (a list of tensors) and that group's options."""


class Optimizer(ABC):
    """Makes the ``torch.optim`` optimizer that a shard server runs on the blocks it leads.

    The entry point names an instance, or a class that is made without arguments. ``elementwise``
    says that an element's update depends on that element's gradient and state alone: then the
    optimizer sees blocks, flat pieces of parameters; otherwise whole parameters in their shape.
    Its state must be tensors and plain numbers in ``optimizer.state``, so that it can move with its
    block, and it must not write into the gradients that it is given: replicas get the same ones.
    """

    api_version: ClassVar[int] = 1
    elementwise: bool = True
    cls: type | None = None
    """Whose docstring and signature `elasticps plugins info` shows as this plugin's."""

    @abstractmethod
    def create(
        self, groups: Sequence[ParamGroup], options: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        """An optimizer over ``groups``; ``options`` are the user's keyword arguments."""


class TorchOptimizer(Optimizer):
    """An optimizer plugin out of any ``torch.optim.Optimizer`` class."""

    def __init__(self, cls: type[torch.optim.Optimizer], *, elementwise: bool = True) -> None:
        self.cls: type[torch.optim.Optimizer] = cls
        self.elementwise = elementwise

    def create(
        self, groups: Sequence[ParamGroup], options: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        return self.cls(list(groups), **options)

    def __repr__(self) -> str:
        return f"TorchOptimizer({self.cls.__name__})"
