"""Chunks of a gradient as their few largest cosine coefficients (DeMo, Peng et al. 2024).

Without its momentum: what is left out is lost, or sent later where elasticps is told so (``ef``).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from elasticps.api.codec import Coded, Reducer
from elasticps.errors import CodecError
from elasticps_dct.cosine import restored, transformed

MAX_CHUNK = 256
"""A coefficient's place in its chunk is one byte."""


class Dct(Reducer):
    """The ``k`` largest of the coefficients of every ``chunk`` numbers.

    The transform is orthonormal, so that the square error is that of the coefficients left out. The
    last numbers of a block are a shorter chunk. On the wire: ascending places, a byte each, padded
    to a multiple of 4; then the coefficients. Raises ValueError for an option out of its range.
    """

    def __init__(self, chunk: int = 64, k: int = 4) -> None:
        if not 1 <= chunk <= MAX_CHUNK:
            raise ValueError(f"chunk is {chunk}, must be 1 to {MAX_CHUNK}")
        if not 1 <= k <= chunk:
            raise ValueError(f"k is {k}, must be 1 to chunk, which is {chunk}")
        self._chunk = chunk
        self._k = k

    def head_nbytes(self, numel: int) -> int:
        return -(-self.values_in(numel) // 4) * 4

    def values_in(self, numel: int) -> int:
        return sum(rows * kept for rows, _, kept in self._parts(numel))

    def reduce(self, gradient: torch.Tensor, seed: int) -> tuple[Coded, torch.Tensor]:
        places, values = [], []
        begin = 0
        for rows, width, kept in self._parts(gradient.numel()):
            piece = gradient[begin : begin + rows * width].view(rows, width)
            begin += rows * width
            coefficients = transformed(piece)
            chosen = coefficients.abs().topk(kept, dim=1, sorted=False).indices.sort(dim=1).values
            places.append(chosen.to(torch.uint8).view(-1))
            values.append(coefficients.gather(1, chosen).view(-1))
        head = torch.cat(places).numpy().tobytes()
        return head.ljust(self.head_nbytes(gradient.numel()), b"\0"), torch.cat(values)

    def restore(self, head: memoryview, values: torch.Tensor, numel: int) -> torch.Tensor:
        places = torch.from_numpy(np.frombuffer(head, np.uint8).astype(np.int64))
        pieces = []
        begin = 0
        for rows, width, kept in self._parts(numel):
            part = slice(begin, begin + rows * kept)
            begin += rows * kept
            chosen = places[part].view(rows, kept)
            if bool((chosen[:, -1] >= width).any() or (chosen.diff(dim=1) <= 0).any()):
                raise CodecError(
                    "the places of a chunk are not ascending",
                    field="places",
                    limit=f"0 to {width - 1}",
                )
            coefficients = torch.zeros(rows, width).scatter_(
                1, chosen, values[part].view(rows, kept)
            )
            pieces.append(restored(coefficients).view(-1))
        return torch.cat(pieces)

    def _parts(self, numel: int) -> Iterator[tuple[int, int, int]]:
        """Chunks, the numbers of each, and the coefficients kept: the whole ones, then the rest."""
        whole, rest = divmod(numel, self._chunk)
        if whole:
            yield whole, self._chunk, self._k
        if rest:
            yield 1, rest, min(self._k, rest)
