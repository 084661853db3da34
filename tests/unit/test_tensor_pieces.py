"""Tensors are written as they lie: to the bit, whatever their dtype and strides, and not copied."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from elasticps.checkpoint import tensor_file
from elasticps.checkpoint.tensor_file import bytes_of, can_hold, pieces_of, write_tensors

DTYPES = sorted(
    {item for item in vars(torch).values() if isinstance(item, torch.dtype) and can_hold(item)},
    key=str,
)
PIECE = 64


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_file, "PIECE_BYTES", PIECE)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_can_be_in_a_file_comes_back_to_the_bit(dtype: torch.dtype, tmp_path: Path) -> None:
    numbers = (torch.randn(9, 7) * 9).abs().to(dtype)
    write_tensors(tmp_path / "x.safetensors", {"a": numbers, "turned": numbers.t()})
    found = load_file(tmp_path / "x.safetensors")
    assert [found["a"].dtype, found["turned"].shape] == [dtype, (7, 9)]
    assert bytes_of(found["a"]) == bytes_of(numbers)
    assert bytes_of(found["turned"]) == bytes_of(numbers.t())


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor(3.0),
        torch.empty(0, 4),
        torch.randn(100),
        torch.randn(5, 40),
        torch.randn(40, 5).t(),
        torch.randn(1, 1, 300).permute(2, 0, 1),
        torch.randn(6, 50)[:, ::2],
        torch.randn(3).expand(50, 3),
        torch.randn(30, dtype=torch.complex64).conj(),
    ],
    ids=lambda tensor: f"{list(tensor.shape)}",
)
def test_pieces_are_the_tensor_and_no_piece_is_large(tensor: torch.Tensor) -> None:
    pieces = list(pieces_of(tensor))
    assert b"".join(pieces) == bytes(bytes_of(tensor))
    assert all(piece.nbytes <= PIECE for piece in pieces)


def test_a_contiguous_tensor_is_not_copied() -> None:
    numbers = torch.zeros(100)
    pieces = pieces_of(numbers)
    next(pieces)
    numbers.fill_(1.0)
    assert all(bytes(piece) == bytes(bytes_of(torch.ones(piece.nbytes // 4))) for piece in pieces)
