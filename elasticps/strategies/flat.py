"""Many tensors as one: what is exchanged in a single piece."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def common_dtype(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    """One that holds them all, and sums of them: at least single precision."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def flattened(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    """All elements in order, in the common dtype. A copy."""
    dtype = common_dtype(tensors)
    flat = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=dtype)
    for tensor, part in zip(tensors, pieces(flat, tensors), strict=True):
        part.copy_(tensor.detach())
    return flat


def pieces(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Views of ``flat``'s first elements, one for each of ``tensors``, in its shape."""
    start = 0
    for tensor in tensors:
        yield flat[start : start + tensor.numel()].view(tensor.shape)
        start += tensor.numel()


def scatter(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Write the elements of ``flat`` into ``tensors``, in order."""
    with torch.no_grad():
        for tensor, part in zip(tensors, pieces(flat, tensors), strict=True):
            tensor.copy_(part)
