"""Every number as one of 255 steps between the extremes of its chunk."""

from __future__ import annotations

import numpy as np
import torch

from elasticps.api.codec import Codec, bytes_from, check_nbytes, tensor_from
from elasticps.codecs.chunks import TILE, check_chunk, chunk_count, like, scales_and_rest, tiles

STEPS = 127
LARGEST_SCALE = float(np.nextafter(np.float32(np.finfo(np.float32).max / STEPS), np.float32(0)))
"""So that 127 steps are finite."""


class Int8(Codec):
    """Block-wise absmax quantisation (Dettmers et al. 2022, section 2.1), linear.

    Each ``chunk`` of numbers has a float32 scale, its largest magnitude / 127; a number is off by
    at most half a scale. A chunk below 4e-37 becomes zeros, one with an inf or nan becomes nan.
    On the wire: the scales, then an int8 for each number. ``values``: also what workers read.
    """

    def __init__(self, chunk: int = 256, values: bool = True) -> None:
        self._chunk = check_chunk(chunk)
        self.codes_values = values

    def max_nbytes(self, numel: int) -> int:
        return numel + 4 * chunk_count(numel, self._chunk)

    def encode(self, gradient: torch.Tensor, seed: int) -> memoryview:
        numel = gradient.numel()
        coded = torch.empty(self.max_nbytes(numel), dtype=torch.uint8)
        scales, steps = scales_and_rest(coded, numel, self._chunk)
        scratch = torch.empty(min(numel, TILE))
        largest = torch.empty_like(scales)
        for elements, chunks, width in tiles(numel, self._chunk):
            rows = gradient[elements].view(-1, width)
            torch.amax(torch.abs(rows, out=like(scratch, rows)), 1, out=largest[chunks])
        inverse = _scale(largest, scales)
        has_none = inverse.count_nonzero() < len(inverse)
        for elements, chunks, width in tiles(numel, self._chunk):
            rows = gradient[elements].view(-1, width)
            scaled = torch.mul(rows, inverse[chunks][:, None], out=like(scratch, rows)).round_()
            if has_none:  # a chunk without steps: nan or inf times 0
                scaled.nan_to_num_(0.0)
            steps[elements].view(torch.int8).view(-1, width).copy_(scaled)
        return bytes_from(coded)

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        check_nbytes(payload, self.max_nbytes(numel))
        scales, steps = scales_and_rest(tensor_from(payload, torch.uint8), numel, self._chunk)
        gradient = torch.empty(numel)
        for elements, chunks, width in tiles(numel, self._chunk):
            rows = steps[elements].view(torch.int8).view(-1, width)
            torch.mul(rows, scales[chunks][:, None], out=gradient[elements].view(-1, width))
        return gradient


def _scale(largest: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Write each chunk's scale; returns steps for one unit, 0 where a chunk can have none."""
    torch.div(largest, STEPS, out=scales).clamp_(max=LARGEST_SCALE)
    inverse = STEPS / largest
    scales[inverse.isinf()] = 0.0
    scales[~largest.isfinite()] = torch.nan
    return inverse.nan_to_num_(0.0, posinf=0.0)
