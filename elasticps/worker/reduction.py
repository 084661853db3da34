"""``run.reduce``: a metric over all members of a round, with the weight that each has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

import torch

from elasticps.core.commands import Reduced
from elasticps.core.reduction import MAX_NUMBERS
from elasticps.errors import UsageError

Metric = TypeVar("Metric", float, torch.Tensor)
Op = Literal["mean", "sum"]


def reduced(
    metric: Metric, op: Op, weight: float, ask: Callable[[Sequence[float], float], Reduced]
) -> Metric:
    """The weighted mean, or the sum, of what the members give; in the shape that was given.

    ``ask`` puts numbers and weight together with the other members'. Sums are of float64. Raises
    UsageError naming the field.
    """
    if op not in ("mean", "sum"):
        raise UsageError(f"op of {op!r}", field="op", limit="mean or sum")
    if not 0 <= weight < float("inf"):
        raise UsageError(f"weight of {weight}", field="weight", limit="a finite number from 0")
    numbers = torch.as_tensor(metric).detach().to(torch.float64).flatten().tolist()
    if len(numbers) > MAX_NUMBERS:
        raise UsageError(
            f"a metric of {len(numbers)} numbers", field="metric", limit=f"{MAX_NUMBERS}"
        )
    factor = weight if op == "mean" else 1.0
    told = ask([number * factor for number in numbers], weight)
    if op == "mean" and not told.weight:
        raise UsageError("all weights are 0", field="weight", limit="one above 0")
    sums = [number / told.weight if op == "mean" else number for number in told.sums]
    if isinstance(metric, torch.Tensor):
        dtype = metric.dtype if metric.is_floating_point() or op == "sum" else torch.float64
        return torch.tensor(sums, dtype=dtype, device=metric.device).reshape(metric.shape)
    return sums[0]
