"""A model's parameters by name, here and as the shards held them when they were last read."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

from elasticps.core.blocks import Model
from elasticps.errors import UsageError
from elasticps.worker.block_calls import Targets

if TYPE_CHECKING:
    from elasticps.api.strategy import Tensors


class ServedModel:
    """``parameters`` is what the script trains. The served values are kept once they are wanted.

    ``at_once`` names those whose pushes are in no rounds.
    """

    def __init__(self, model: Model, tensors: Sequence[torch.Tensor]) -> None:
        names = [row.name for row in model.parameters]
        self.parameters: Tensors = MappingProxyType(dict(zip(names, tensors, strict=True)))
        self.at_once = frozenset(row.name for row in model.parameters if row.at_once)
        self._index = {name: index for index, name in enumerate(names)}
        self._served: dict[str, torch.Tensor] = {}

    @property
    def is_kept(self) -> bool:
        return bool(self._served)

    @property
    def served(self) -> Tensors:
        return MappingProxyType(self._served)

    def refresh(self, names: Collection[str] | None = None) -> None:
        """The parameters, or ``names``, have just been read: what is kept apart is the same."""
        for name, tensor in self._served.items():
            if names is None or name in names:
                tensor.copy_(self.parameters[name].detach())

    def install(self, values: Tensors) -> None:
        """``values``, tensors that nobody else writes to, are what the shards hold."""
        self._served.update(values)

    def fresh(self, names: Collection[str]) -> dict[str, torch.Tensor]:
        """Room for the values of ``names``."""
        return {name: torch.empty_like(self._known(name).detach()) for name in names}

    def by_index(self, tensors: Tensors) -> Targets:
        """The same by the parameters' places. Raises UsageError for what does not fit its own."""
        fitting = {name: self._fitting(name, item) for name, item in tensors.items()}
        return {self._index[name]: item for name, item in fitting.items()}

    def numbered(self, weights: Mapping[str, float]) -> dict[int, float]:
        """The same by the parameters' places."""
        return {self._place(name): item for name, item in weights.items()}

    def _place(self, name: str) -> int:
        self._known(name)
        return self._index[name]

    def _fitting(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        parameter = self._known(name)
        if (tensor.shape, tensor.dtype) != (parameter.shape, parameter.dtype):
            raise UsageError(
                f"the update of {name} is {tuple(tensor.shape)} of {tensor.dtype}",
                field=name,
                limit=f"{tuple(parameter.shape)} of {parameter.dtype}",
            )
        return tensor.detach()

    def _known(self, name: str) -> torch.Tensor:
        try:
            return self.parameters[name]
        except KeyError:
            raise UsageError(f"no parameter is named {name!r}", field="updates") from None
