"""Cutting a flat tensor into equal chunks, many at a time and few enough for a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

TILE = 1 << 16
"""Elements worked on at a time: with scratch memory beside them they stay in a core's cache."""
MAX_CHUNK = TILE


def check_chunk(chunk: int) -> int:
    """An option's value; raises ValueError."""
    if not (isinstance(chunk, int) and 1 <= chunk <= MAX_CHUNK):
        raise ValueError(f"chunk {chunk} (limit: 1 to {MAX_CHUNK})")
    return chunk


def chunk_count(numel: int, chunk: int) -> int:
    return -(-numel // chunk)


def tiles(numel: int, chunk: int) -> Iterator[tuple[slice, slice, int]]:
    """Pieces of whole chunks, then the rest: elements, chunks, and the elements of each chunk."""
    whole = numel // chunk
    step = max(1, TILE // chunk)
    for first in range(0, whole, step):
        last = min(first + step, whole)
        yield slice(first * chunk, last * chunk), slice(first, last), chunk
    if rest := numel - whole * chunk:
        yield slice(numel - rest, numel), slice(whole, whole + 1), rest


def scales_and_rest(
    coded: torch.Tensor, numel: int, chunk: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Coded bytes as a float32 for each chunk, and what follows."""
    at = 4 * chunk_count(numel, chunk)
    return coded[:at].view(torch.float32), coded[at:]


def like(scratch: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """As much of flat scratch memory as ``rows`` has, in its shape."""
    return scratch[: rows.numel()].view(rows.shape)
