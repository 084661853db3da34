"""Random numbers of a block; which ones, the other side draws again from the seed."""

from __future__ import annotations

import numpy as np
import torch

from elasticps.api.codec import Coded, Reducer
from elasticps.codecs.ratio import check_ratio, kept_of

SEED_BYTES = 8
GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FIRST = np.uint64(0xBF58476D1CE4E5B9)
SECOND = np.uint64(0x94D049BB133111EB)


class RandomK(Reducer):
    """One number out of each of k equal pieces of the block: stratified rand-k (Stich et al. 2018).

    Kept numbers are exact and the others zero: the square error never exceeds |g|^2, and is
    (1 - k/n) |g|^2 in the mean. ``unbiased`` multiplies what is kept by the size of its piece, so
    that the mean over seeds is the gradient; do not use that with error feedback. An inf or nan
    that is not drawn is not seen. On the wire: the seed, then the numbers.
    """

    def __init__(self, ratio: float = 0.01, unbiased: bool = False) -> None:
        self._ratio = check_ratio(ratio)
        self._unbiased = unbiased

    def head_nbytes(self, numel: int) -> int:
        return SEED_BYTES

    def values_in(self, numel: int) -> int:
        return kept_of(numel, self._ratio)

    def reduce(self, gradient: torch.Tensor, seed: int) -> tuple[Coded, torch.Tensor]:
        places, sizes = drawn(seed, gradient.numel(), self.values_in(gradient.numel()))
        values = gradient[torch.from_numpy(places)]
        if self._unbiased:
            values *= torch.from_numpy(sizes)
        return seed.to_bytes(SEED_BYTES, "little"), values

    def restore(self, head: memoryview, values: torch.Tensor, numel: int) -> torch.Tensor:
        places, _ = drawn(int.from_bytes(head, "little"), numel, len(values))
        gradient = torch.zeros(numel)
        gradient[torch.from_numpy(places)] = values
        return gradient


def drawn(seed: int, numel: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """``count`` ascending places below ``numel``, and the sizes of the pieces that each is out of.

    By splitmix64 (Steele et al. 2014): the same on every machine and with every library.
    """
    edges = np.arange(count + 1, dtype=np.int64) * numel // count
    sizes = np.diff(edges)
    mixed = np.arange(1, count + 1, dtype=np.uint64) * GOLDEN + np.uint64(seed)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * FIRST
    mixed = (mixed ^ (mixed >> np.uint64(27))) * SECOND
    mixed ^= mixed >> np.uint64(31)
    offsets = (mixed % sizes.astype(np.uint64)).astype(np.int64)
    return edges[:-1] + offsets, sizes
