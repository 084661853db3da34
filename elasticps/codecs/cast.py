"""Every number in fewer bits: a cast to bfloat16 or float16, rounded to nearest."""

from __future__ import annotations

import torch

from elasticps.api.codec import Codec, bytes_from, check_nbytes, tensor_from


class _Cast(Codec):
    """What is finite stays finite: beyond the dtype's largest it becomes that. inf and nan stay."""

    dtype: torch.dtype

    def max_nbytes(self, numel: int) -> int:
        return self.dtype.itemsize * numel

    def encode(self, gradient: torch.Tensor, seed: int) -> memoryview:
        largest = torch.finfo(self.dtype).max
        low, high = torch.aminmax(gradient)
        if not (-largest <= low and high <= largest):  # a nan compares as false
            within = gradient.clamp(-largest, largest)
            gradient = torch.where(gradient.isinf(), gradient, within)
        return bytes_from(torch.empty_like(gradient, dtype=self.dtype).copy_(gradient))

    def decode(self, payload: memoryview, numel: int) -> torch.Tensor:
        check_nbytes(payload, self.max_nbytes(numel))
        return tensor_from(payload, self.dtype).to(torch.float32)


class Float32(_Cast):
    """The numbers as they are: for a part of a stack (a job whose codec is ``none`` has none)."""

    dtype = torch.float32


class Bf16(_Cast):
    """8 bits of significand: an error of at most 2^-8 of each number."""

    dtype = torch.bfloat16


class Fp16(_Cast):
    """11 bits of significand: an error of at most 2^-11 of each number, and 2^-25 near zero.

    Numbers beyond 65504 become 65504.
    """

    dtype = torch.float16
