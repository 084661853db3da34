"""Gradients with a NaN or an infinity in them: looked for, counted, told, refused where asked."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

import torch

from elasticps.core.consistency import NonFinite
from elasticps.core.ids import BlockId
from elasticps.errors import WireError
from elasticps.wire.control_messages import JobInfo
from elasticps.wire.tallies import JobCounts

log = logging.getLogger(__name__)

CHECKED_SHARE = 0.005
"""Of the server's processor time, what looking may take where a job does not ask for more."""


class SpotCheck:
    """Looks at some gradients, as many as take a small share of the server's time.

    One that is not finite spreads: all gradients after it are like it, and one of them is seen.
    """

    def __init__(self) -> None:
        self._due_s = 0.0

    @property
    def is_due(self) -> bool:
        return time.monotonic() >= self._due_s

    def is_finite(self, gradient: torch.Tensor) -> bool:
        """Has it neither an inf nor a NaN?"""
        began_s = time.thread_time()
        finite = is_finite(gradient)
        self._due_s = time.monotonic() + (time.thread_time() - began_s) / CHECKED_SHARE
        return finite


class FiniteWatch:
    """What one block's primary does about them, by the job's policy; adds to ``counts``.

    ``refuse`` looks at every push, ``apply`` at some of what it applies.
    """

    def __init__(
        self, info: JobInfo, block: BlockId, counts: JobCounts, spot_check: SpotCheck
    ) -> None:
        self._job = info.name
        self._policy = info.nonfinite
        self._block = block
        self._counts = counts
        self._spot_check = spot_check
        self._is_told = False

    def check(self, gradient: torch.Tensor | None) -> None:
        """Raise WireError for a push that the job's policy refuses; one pass over its memory."""
        if self._policy is NonFinite.REFUSE and gradient is not None:
            finite = is_finite(gradient)
            self._count(finite=finite)
            if not finite:
                raise WireError(
                    f"the gradient for block {self._block} is not finite",
                    field="payload",
                    limit=f"nonfinite={self._policy.value}: no NaN, no infinity",
                )

    @property
    def looks_at_some(self) -> bool:
        """Is nothing refused for what is in it?"""
        return self._policy is NonFinite.APPLY

    def note(self, gradients: Sequence[torch.Tensor]) -> None:
        """Count what is applied although it is not finite, as far as it is looked at."""
        if self._policy is NonFinite.APPLY and self._spot_check.is_due:
            for gradient in gradients:
                self._count(finite=self._spot_check.is_finite(gradient))

    def _count(self, *, finite: bool) -> None:
        self._counts.checked += 1
        self._counts.nonfinite += not finite
        if not finite and not self._is_told:
            self._is_told = True
            log.warning(
                "job=%s block=%s a gradient is not finite, nonfinite=%s; more are counted alone",
                self._job,
                self._block,
                self._policy.value,
            )


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    if not tensor.numel():
        return True
    real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
    low, high = torch.aminmax(real)  # half the time of isfinite(); a NaN makes both NaN
    return bool(torch.isfinite(low)) and bool(torch.isfinite(high))
