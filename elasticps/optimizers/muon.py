"""Muon as a plugin, apart from the others: torch has had it since 2.9 only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from elasticps.api.optimizer import ParamGroup, TorchOptimizer
from elasticps.errors import UsageError


class MuonOptimizer(TorchOptimizer):
    """Makes the momentum of a whole matrix orthogonal. Raises UsageError for other parameters."""

    def create(
        self, groups: Sequence[ParamGroup], options: Mapping[str, Any]
    ) -> torch.optim.Optimizer:
        listed = [{**group, "params": list(group["params"])} for group in groups]
        for group in listed:
            for parameter in group["params"]:
                if parameter.dim() != 2:
                    raise UsageError(
                        f"muon is for matrices, and a parameter has shape {tuple(parameter.shape)}",
                        field="groups",
                        hint="give each param group its optimizer with by-group: muon, and adamw",
                    )
        return super().create(listed, options)


muon = MuonOptimizer(torch.optim.Muon, elementwise=False)
