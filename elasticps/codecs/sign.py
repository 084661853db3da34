"""One bit for each number: its sign, times the mean magnitude of its chunk."""

from __future__ import annotations

import numpy as np
import torch

from elasticps.api.codec import Codec, bytes_from, check_nbytes, tensor_from
from elasticps.codecs.chunks import check_chunk, chunk_count, scales_and_rest, tiles


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
        for elements, chunks, width in tiles(numel, self._chunk):
            scales[chunks] = _mean_magnitude(gradient[elements].view(-1, width))
        bits.numpy()[:] = np.packbits(np.signbit(gradient.numpy()))
        return bytes_from(coded)

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        check_nbytes(payload, self.max_nbytes(numel))
        scales, packed = scales_and_rest(tensor_from(payload, torch.uint8), numel, self._chunk)
        negative = torch.from_numpy(np.unpackbits(packed.numpy(), count=numel).view(np.bool_))
        gradient = torch.empty(numel)
        for elements, chunks, width in tiles(numel, self._chunk):
            scale = scales[chunks][:, None]
            into = gradient[elements].view(-1, width)
            torch.where(negative[elements].view(-1, width), -scale, scale, out=into)
        return gradient


def _mean_magnitude(rows: torch.Tensor) -> torch.Tensor:
    mean = rows.abs().mean(1)
    if not bool(mean.isfinite().all()):  # or a sum that float32 does not hold
        mean = rows.double().abs().mean(1).float()
        mean[~mean.isfinite()] = torch.nan
    return mean
