"""A tensor's bytes are its own memory, whatever its dtype and shape."""

from __future__ import annotations

import pytest
import torch

from elasticps.wire.tensors import bytes_of

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.complex64,
    torch.int64,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (), (0,), (3, 0)], ids=str)
def test_bytes_are_flat_and_writing_them_writes_the_tensor(
    dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    tensor, wanted = torch.zeros(shape, dtype=dtype), torch.ones(shape, dtype=dtype)
    view, source = bytes_of(tensor), bytes_of(wanted)
    assert (view.format, view.ndim, view.nbytes) == ("B", 1, tensor.nbytes)
    view[:] = source
    assert torch.equal(tensor, wanted)


def test_bytes_of_a_parameter_need_no_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(4))
    bytes_of(parameter)[:4] = bytes_of(torch.zeros(1))
    assert parameter[0] == 0
    assert parameter.requires_grad
