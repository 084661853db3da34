"""Values that go to workers as coded differences: which blocks', and how both ends add them.

A worker names the value that it has by its digest. So whoever answers, and whatever the worker has
done to its parameters meanwhile, a difference is only ever added to the value that it is from.
"""

from __future__ import annotations

import torch
import xxhash

from elasticps.api.job_codec import JobCodec
from elasticps.core.blocks import Block

LEAST_BYTES = 64 * 1024
"""Smaller blocks' values go as they are: of those a message costs more than its bytes."""


def are_coded(codec: JobCodec | None, block: Block) -> bool:
    """Does a job with this codec code the values of the block, in rounds?"""
    return codec is not None and codec.codes_values and block.nbytes > LEAST_BYTES


def digest_of(value: memoryview) -> int:
    """64 bits that tell a block's values apart: XXH3 of the bytes."""
    return xxhash.xxh3_64_intdigest(value)


def add(value: torch.Tensor, difference: torch.Tensor) -> None:
    """Add a decoded float32 difference to a flat value of any dtype, to the same bits everywhere.

    Half precision is added in float32 and rounded to the nearest.
    """
    value.add_(difference)
