"""The order of a pass over a data set, and where in it the samples of a node lie."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from elasticps.core.ranges import Range
from elasticps.core.reading import MAX_LOCAL
from elasticps.errors import UsageError


def sample_order(
    size: int, seed: int, data_epoch: int, *, shuffle: bool = True, chunk: int = 1
) -> torch.Tensor:
    """The order of a pass over the data: a function of its arguments alone, the same everywhere.

    ``chunk``: so many neighbours stay together; the chunks are shuffled, and each within itself.
    Returns ``size`` int64 indices.
    """
    if not shuffle:
        return torch.arange(size)
    generator = torch.Generator().manual_seed(seed + data_epoch)
    if chunk == 1:
        return torch.randperm(size, generator=generator)
    places = torch.randperm((size + chunk - 1) // chunk, generator=generator)
    within = torch.randperm(size, generator=generator)
    return torch.argsort(places[torch.arange(size) // chunk] * size + within)


def mask_of(local: Iterable[int], size: int) -> torch.Tensor:
    """True at the indices ``local``, of shape ``(size,)``. Raises UsageError for others."""
    try:
        indices = torch.as_tensor(list(local), dtype=torch.int64)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"local: no indices: {error}", field="local", limit=f"whole numbers, 0 to {size - 1}"
        ) from None
    if len(indices) and not (int(indices.min()) >= 0 and int(indices.max()) < size):
        raise UsageError(
            f"local: an index that is none of {size} samples",
            field="local",
            limit=f"0 to {size - 1}",
        )
    mask = torch.zeros(size, dtype=torch.bool)
    mask[indices] = True
    return mask


def pieces_of(mask: torch.Tensor, order: torch.Tensor, data_epoch: int) -> tuple[Range, ...]:
    """The positions of a data epoch at which ``order`` has samples of ``mask``."""
    there = torch.nn.functional.pad(mask[order].to(torch.int8), (1, 1))
    edges = torch.nonzero(there.diff()).flatten() + data_epoch * len(order)
    return tuple(Range(start, stop) for start, stop in edges.view(-1, 2).tolist())


def check_pieces(pieces: int) -> None:
    """Raise UsageError for more pieces than a worker may say lie on its node."""
    if pieces > MAX_LOCAL:
        raise UsageError(
            f"what lies on this node is {pieces} pieces of the shuffled order",
            field="local",
            limit=f"{MAX_LOCAL} pieces in two data epochs",
            hint="shuffle in larger pieces: run.data(..., chunk=...), or shuffle=False",
        )
