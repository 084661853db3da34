"""Tensors as bytes, without a copy where their memory allows."""

from __future__ import annotations

import numpy as np
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

_NATIVE = frozenset({torch.float64, torch.float32, torch.float16, torch.int64, torch.uint8})
"""Those of which a memoryview can be taken as it is: not bfloat16, nor complex numbers."""


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The writable memory of a contiguous CPU tensor as flat bytes; no copy is made."""
    assert tensor.is_contiguous()
    assert tensor.is_cpu
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.dtype not in _NATIVE or not tensor.numel():
        tensor = tensor.reshape(-1).view(torch.uint8)
    view = memoryview(tensor.numpy())  # type: ignore[arg-type]
    return view.cast("B")


def copy_bytes(target: memoryview, source: memoryview) -> None:
    """Copy flat bytes of one length; other threads go on meanwhile, as they do not at a slice's."""
    np.copyto(np.asarray(target), np.asarray(source))


def dtype_named(name: str) -> torch.dtype:
    """The dtype that torch calls ``name``; ValueError for one that cannot be in a block's state."""
    try:
        return _DTYPES[name]
    except KeyError:
        raise ValueError(f"no dtype {name!r} here") from None


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
