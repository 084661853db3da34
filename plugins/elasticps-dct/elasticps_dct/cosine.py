"""The orthonormal discrete cosine transform (DCT-II, Ahmed et al. 1974) of rows, as a matrix."""

from __future__ import annotations

import functools
import math

import torch


@functools.cache
def basis(length: int) -> torch.Tensor:
    """The cosines as rows, lowest frequency first: float32, (length, length), orthonormal."""
    place = torch.arange(length, dtype=torch.float64)
    cosines = torch.cos(math.pi / length * torch.outer(place, place + 0.5))
    cosines[0] *= math.sqrt(0.5)
    return (cosines * math.sqrt(2 / length)).float()


def transformed(rows: torch.Tensor) -> torch.Tensor:
    """Each row's coefficients."""
    return rows @ basis(rows.shape[1]).T


def restored(coefficients: torch.Tensor) -> torch.Tensor:
    """The rows that have these coefficients."""
    return coefficients @ basis(coefficients.shape[1])
