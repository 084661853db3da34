"""Muon as a plugin, apart from the others: torch has had it since 2.9 only."""

from __future__ import annotations

import torch

from elasticps.api.optimizer import TorchOptimizer

muon = TorchOptimizer(torch.optim.Muon, elementwise=False)
"""Makes the momentum of a whole matrix orthogonal; it refuses parameters that are no matrices."""
