"""Tensors as bytes, without a copy where their memory allows."""

from __future__ import annotations

import torch


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The writable memory of a contiguous CPU tensor as flat bytes; no copy is made."""
    assert tensor.is_contiguous()
    assert tensor.device.type == "cpu"
    array = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(array)  # type: ignore[arg-type]


def dtype_named(name: str) -> torch.dtype:
    """The dtype that torch calls ``name``; ValueError where there is none."""
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"torch has no dtype {name}")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
