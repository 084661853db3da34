"""Gradients with a NaN or an infinity in them: counted, told once a block, refused where asked."""

from __future__ import annotations

import logging

import torch

from elasticps.core.consistency import NonFinite
from elasticps.core.ids import BlockId
from elasticps.errors import WireError
from elasticps.wire.messages import JobInfo

log = logging.getLogger(__name__)


class FiniteWatch:
    """What one block's primary does about them. ``count`` is of gradients, not of elements."""

    def __init__(self, info: JobInfo, block: BlockId) -> None:
        self.count = 0
        self._job = info.name
        self._policy = info.nonfinite
        self._block = block

    def check(self, gradient: torch.Tensor | None) -> None:
        """Raise WireError for a push that the job's policy refuses; one pass over its memory."""
        if self._policy is NonFinite.REFUSE and not is_finite(gradient):
            self._tell()
            raise WireError(
                f"the gradient for block {self._block} is not finite",
                field="payload",
                limit=f"nonfinite={self._policy.value}: no NaN, no infinity",
            )

    def note(self, gradient: torch.Tensor | None) -> None:
        """Count what is applied although it is not finite."""
        if not is_finite(gradient):
            self._tell()

    def _tell(self) -> None:
        self.count += 1
        if self.count == 1:
            log.warning(
                "job=%s block=%s a gradient is not finite, nonfinite=%s; more are counted alone",
                self._job,
                self._block,
                self._policy.value,
            )


def is_finite(tensor: torch.Tensor | None) -> bool:
    """Whether no element is NaN or infinite."""
    if tensor is None or not tensor.is_floating_point():
        return True
    # The sum is read once and allocates nothing; only one that overflows is worth a second look.
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())
