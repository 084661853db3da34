"""The largest numbers of a block, each with its place."""

from __future__ import annotations

import numpy as np
import torch

from elasticps.api.codec import Coded, Reducer
from elasticps.codecs.ratio import check_ratio, kept_of
from elasticps.errors import CodecError

MAGNITUDE = 0x7FFFFFFF
SAMPLED = 1 << 14
"""Numbers looked at to guess where the largest ones begin."""
MARGIN = 1.3
"""So many times more than are wanted are looked at, for the guess is a guess."""


class TopK(Reducer):
    """The ``ratio`` of the numbers that are largest in magnitude (Aji and Heafield 2017).

    They are kept exactly, the others become zero: the square error is at most (1 - k/n) |g|^2. nan
    counts as the largest, then inf. Which of equals are kept depends on the block alone. On the
    wire: ascending places, in 2 bytes where the block has at most 65536 numbers and else in 4,
    padded to a multiple of 4; then the numbers.
    """

    def __init__(self, ratio: float = 0.01) -> None:
        self._ratio = check_ratio(ratio)

    def head_nbytes(self, numel: int) -> int:
        nbytes = _place_dtype(numel).itemsize * self.values_in(numel)
        return nbytes + nbytes % 4

    def values_in(self, numel: int) -> int:
        return kept_of(numel, self._ratio)

    def reduce(self, gradient: torch.Tensor, seed: int) -> tuple[Coded, torch.Tensor]:
        numel = gradient.numel()
        places = largest(gradient, self.values_in(numel))
        head = places.numpy().astype(_place_dtype(numel)).tobytes()
        return head.ljust(self.head_nbytes(numel), b"\0"), gradient[places]

    def restore(self, head: memoryview, values: torch.Tensor, numel: int) -> torch.Tensor:
        places = np.frombuffer(head, _place_dtype(numel), count=len(values)).astype(np.int64)
        if places[-1] >= numel or bool((places[1:] <= places[:-1]).any()):
            raise CodecError(
                "the places are not ascending", field="places", limit=f"0 to {numel - 1}"
            )
        gradient = torch.zeros(numel)
        gradient[torch.from_numpy(places)] = values
        return gradient


def largest(gradient: torch.Tensor, count: int) -> torch.Tensor:
    """The places of the ``count`` largest magnitudes, ascending.

    The bits of a float without its sign, read as a whole number, have the order of magnitudes, nan
    on top. A sample says above which of them the ``count`` largest surely lie; where it was wrong
    all are looked at.
    """
    magnitude = gradient.view(torch.int32) & MAGNITUDE
    places = torch.from_numpy(np.flatnonzero((magnitude >= _guess(magnitude, count)).numpy()))
    if len(places) < count:
        places = torch.arange(len(magnitude))
    among = torch.topk(magnitude[places], count, sorted=False).indices
    return places[among].sort().values


def _guess(magnitude: torch.Tensor, count: int) -> int:
    """A magnitude above which there are probably ``count``, and not many more."""
    sample = magnitude[:: max(1, len(magnitude) // SAMPLED)]
    wanted = int(MARGIN * count * len(sample) / len(magnitude)) + 16
    if wanted >= len(sample):
        return 0
    return int(torch.topk(sample, wanted).values[-1])


def _place_dtype(numel: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("<u2" if numel <= 1 << 16 else "<u4")
