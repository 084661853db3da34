"""A quadratic that each worker sees from a centre of its own, with two parameters: 3 and 2."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

import elasticps


def centres(count: int) -> list[np.ndarray]:
    """Where each rank's loss is least."""
    return [np.arange(1.0, 6.0) * (1 + rank) - rank**2 for rank in range(count)]


class Vector(nn.Module):
    """Five numbers, from zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(3))
        self.second = nn.Parameter(torch.zeros(2))

    @property
    def whole(self) -> torch.Tensor:
        return torch.cat([self.first, self.second])


@dataclass(frozen=True, slots=True, kw_only=True)
class Quadratic:
    """``steps`` steps of SGD on half the squared distance from the rank's centre."""

    steps: int
    lr: float

    def trained(self, run: elasticps.Run) -> np.ndarray:
        """What the worker holds after its last step."""
        model = Vector()
        optimizer = run.optimizer(model, "sgd", lr=self.lr)
        centre = torch.tensor(centres(run.world)[run.rank], dtype=torch.float32)
        for _ in range(self.steps):
            optimizer.zero_grad()
            (0.5 * (model.whole - centre).pow(2).sum()).backward()
            optimizer.step()
        found: np.ndarray = model.whole.detach().numpy().copy()
        return found
