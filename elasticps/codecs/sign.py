"""One bit for each number: its sign, times the mean magnitude of its chunk."""

from __future__ import annotations

import numpy as np
import torch

from elasticps.api.codec import Codec, bytes_from, check_nbytes, tensor_from
from elasticps.codecs.chunks import TILE, check_chunk, chunk_count, like, scales_and_rest, tiles


class Sign(Codec):
    """Scaled signs (Karimireddy et al. 2019, section 4): a contraction, to be used with ``ef+``.

    The square error of a ``chunk`` g is |g|^2 - (sum of |g_i|)^2 / n, never above |g|^2. A chunk
    with an inf or nan becomes nan. On the wire: a float32 for each chunk, then a bit for each
    number, 1 for negative.
    """

    def __init__(self, chunk: int = 1024) -> None:
        self._chunk = check_chunk(chunk)

    def max_nbytes(self, numel: int) -> int:
        return 4 * chunk_count(numel, self._chunk) + -(-numel // 8)

    def encode(self, gradient: torch.Tensor, seed: int) -> memoryview:
        numel = gradient.numel()
        coded = torch.empty(self.max_nbytes(numel), dtype=torch.uint8)
        scales, bits = scales_and_rest(coded, numel, self._chunk)
        scratch = torch.empty(min(numel, TILE))
        for elements, chunks, width in tiles(numel, self._chunk):
            rows = gradient[elements].view(-1, width)
            torch.mean(torch.abs(rows, out=like(scratch, rows)), 1, out=scales[chunks])
        if not bool(scales.isfinite().all()):
            self._mean_in_double(gradient, scales)
        bits.numpy()[:] = np.packbits(np.signbit(gradient.numpy()))
        return bytes_from(coded)

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        check_nbytes(payload, self.max_nbytes(numel))
        scales, packed = scales_and_rest(tensor_from(payload, torch.uint8), numel, self._chunk)
        signs = np.unpackbits(packed.numpy(), count=numel).view(np.int8)
        signs *= -2
        signs += 1
        gradient = torch.empty(numel)
        for elements, chunks, width in tiles(numel, self._chunk):
            rows = torch.from_numpy(signs[elements]).view(-1, width)
            torch.mul(rows, scales[chunks][:, None], out=gradient[elements].view(-1, width))
        return gradient

    def _mean_in_double(self, gradient: torch.Tensor, scales: torch.Tensor) -> None:
        """What float32 could not sum; nan where there is an inf."""
        for elements, chunks, width in tiles(gradient.numel(), self._chunk):
            scales[chunks] = gradient[elements].double().abs().view(-1, width).mean(1).float()
        scales[~scales.isfinite()] = torch.nan
