"""Clipping a step's gradient by its global norm, over all parameters and all workers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch.nn.utils import clip_grad_norm_

from elasticps.errors import UsageError

EPSILON = 1e-6
"""What torch adds to the norm, in ``torch.nn.utils.clip_grad_norm_``."""


class Clipping:
    """What no step's gradient may be longer than, and how long the last one was.

    Pascanu et al. 2013, "On the difficulty of training recurrent neural networks", algorithm 1, as
    torch does it: a norm that is NaN or infinite is no error, and the gradients become NaN by it.
    """

    def __init__(self, bound: float | None) -> None:
        self.bound = bound
        self.norm: float | None = None

    @property
    def bound(self) -> float | None:
        """The largest norm, None for any. Raises UsageError for one that is not above 0."""
        return self._bound

    @bound.setter
    def bound(self, bound: float | None) -> None:
        if bound is not None and not bound > 0:
            raise UsageError(
                f"clip_grad_norm of {bound}", field="clip_grad_norm", limit="above 0, or None"
            )
        self._bound = None if bound is None else float(bound)

    def scale(self, norms: Sequence[float], bound: float) -> float:
        """What a gradient is multiplied by, given the norms of its parts in a fixed order."""
        parts = torch.tensor(norms, dtype=torch.float64)
        self.norm = float(torch.linalg.vector_norm(parts))
        scale = bound / (self.norm + EPSILON)
        return scale if math.isnan(scale) else min(scale, 1.0)

    def clip(self, parameters: Iterable[torch.Tensor]) -> None:
        """Clip the gradients that are here, as the local optimizer is to see them."""
        if self.bound is not None:
            self.norm = float(clip_grad_norm_(parameters, self.bound))
