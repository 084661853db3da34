"""A group's gradients as they come in, each straight to where it stays until it is applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from elasticps.wire.groups import SMALL_BYTES, Piece, aligned
from elasticps.wire.tensors import bytes_of


class Landed:
    """Memory for the payload of a group of pushes; ``take`` gives so many bytes of it.

    A large gradient has memory of its own, for it is kept and let go of by itself. Small ones that
    follow each other have some together.
    """

    def __init__(self, pieces: Sequence[Piece], take: Callable[[int], torch.Tensor]) -> None:
        self._tensors: list[torch.Tensor] = []
        self._where: list[tuple[int, int, int]] = []
        sizes: list[int] = []
        is_open = False
        for piece in pieces:
            size = aligned(piece.nbytes)
            is_small = piece.nbytes <= SMALL_BYTES
            if not (is_small and is_open):
                sizes.append(0)
            is_open = is_small
            self._where.append((len(sizes) - 1, sizes[-1], piece.nbytes))
            sizes[-1] += size
        self._tensors = [take(size) for size in sizes]

    @property
    def target(self) -> list[memoryview]:
        """Where the payload goes, in its order."""
        return [bytes_of(tensor) for tensor in self._tensors if tensor.numel()]

    def gradient(self, index: int) -> torch.Tensor:
        """The bytes of a piece, by its index."""
        tensor, start, nbytes = self._where[index]
        return self._tensors[tensor][start : start + nbytes]
