"""Tensors as bytes, without a copy where their memory allows."""

from __future__ import annotations

import torch

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
}


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The writable memory of a contiguous CPU tensor as flat bytes; no copy is made."""
    assert tensor.is_contiguous()
    assert tensor.is_cpu
    flat = tensor.detach()
    if flat.dim() != 1:
        flat = flat.reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]


def dtype_named(name: str) -> torch.dtype:
    """The dtype that torch calls ``name``; ValueError for one that cannot be in a block's state."""
    try:
        return _DTYPES[name]
    except KeyError:
        raise ValueError(f"no dtype {name!r} here") from None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
