"""Workers' mean gradient by samples: whole, or a piece at a time where nobody needs the whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import EllipsisType

import torch

EXACT = frozenset({torch.float32, torch.float64})
"""Summed in their own dtype; half precision in single, for a batch's sum may not fit it."""


@dataclass(frozen=True)  # without slots, for what is cached
class Mean:
    """``parts``: flat gradients of one block and what each counts, in the order of summing.

    ``scale`` is what their mean is multiplied by. A piece has the bits that the whole has there.
    """

    parts: Sequence[tuple[torch.Tensor, float]]
    total: float
    scale: float = 1.0

    @property
    def weights(self) -> tuple[object, ...]:
        """What means have in common that can be made together."""
        return self.dtype, self.total, self.scale, *(weight for _, weight in self.parts)

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0][0].dtype

    @cached_property
    def whole(self) -> torch.Tensor:
        """In memory of its own."""
        wide = torch.promote_types(self.dtype, torch.float32)
        room = torch.empty(self.parts[0][0].shape, dtype=wide)
        return self.piece(..., room).to(self.dtype)

    def summed_into(self, room: torch.Tensor) -> torch.Tensor:
        """The whole in memory that may be the first gradient's, where that is wide enough."""
        return self.piece(..., room) if room.dtype in EXACT else self.whole

    def piece(self, where: slice | EllipsisType, room: torch.Tensor) -> torch.Tensor:
        """The mean there, in ``room``: as many elements of the dtype that is summed in."""
        (first, weight), *others = self.parts
        if first.dtype != room.dtype:
            room.copy_(first[where]).mul_(weight)
        elif weight == 1.0 and others:  # the same numbers by one pass less
            (second, its_weight), *others = others
            torch.add(first[where], second[where], alpha=its_weight, out=room)
        else:
            torch.mul(first[where], weight, out=room)
        for gradient, its_weight in others:
            room.add_(gradient[where], alpha=its_weight)
        room.div_(self.total)
        return room if self.scale == 1.0 else room.mul_(self.scale)


def wholes(means: Sequence[Mean]) -> Sequence[torch.Tensor]:
    """The wholes of means of equal ``weights``, of a dtype that is ``EXACT``; the same bits, by
    torch's operations for lists."""
    weights = [weight for _, weight in means[0].parts]
    first, *others = ([each.parts[at][0] for each in means] for at in range(len(weights)))
    if weights[0] == 1.0 and others:
        # Lists' operations are public by torch's documentation, whatever their names say.
        sums = torch._foreach_add(first, others.pop(0), alpha=weights.pop(1))  # noqa: SLF001
    else:
        sums = torch._foreach_mul(first, weights[0])  # noqa: SLF001
    for gradients, weight in zip(others, weights[1:], strict=True):
        torch._foreach_add_(sums, gradients, alpha=weight)
    torch._foreach_div_(sums, means[0].total)
    if means[0].scale != 1.0:
        torch._foreach_mul_(sums, means[0].scale)
    return sums
