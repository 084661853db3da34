"""A block as the product of two thin matrices."""

from __future__ import annotations

import math

import torch

from elasticps.api.codec import Coded, Reducer


class PowerSGD(Reducer):
    """Low rank by subspace iteration (Vogels et al. 2019, algorithm 1), for each worker by itself.

    The block is written row by row into a matrix M that is as square as it can be, for a block
    knows nothing of its parameter's shape: a matrix of low rank that is cut into other rows may
    have a higher one. From a random Q, ``iterations`` times: P = M Q, made orthonormal; Q = M^T P.
    P Q^T is M projected on P's columns, so the square error never exceeds |g|^2. Unlike in the
    paper Q is drawn anew for each push, and P is not summed over workers. Where the factors are no
    smaller than the block, the numbers go as they are. A block with an inf or nan, or numbers
    beyond 1e30, may become nan. On the wire: P, then Q.
    """

    def __init__(self, rank: int = 4, iterations: int = 1) -> None:
        for name, option in (("rank", rank), ("iterations", iterations)):
            if not (isinstance(option, int) and 1 <= option <= 1024):
                raise ValueError(f"{name} {option} (limit: 1 to 1024)")
        self._rank = rank
        self._iterations = iterations

    def head_nbytes(self, numel: int) -> int:
        return 0

    def values_in(self, numel: int) -> int:
        return min(numel, self._rank * sum(matrix_shape(numel)))

    def reduce(self, gradient: torch.Tensor, seed: int) -> tuple[Coded, torch.Tensor]:
        numel = gradient.numel()
        if self.values_in(numel) == numel:
            return b"", gradient
        largest = gradient.abs().max()
        if not bool(largest.isfinite()):
            return b"", torch.full((self.values_in(numel),), torch.nan)
        rows, columns = matrix_shape(numel)
        matrix = torch.zeros(rows * columns)
        torch.div(gradient, largest if largest > 0 else 1.0, out=matrix[:numel])
        left, right = self._factors(matrix.view(rows, columns), seed)
        return b"", torch.cat((left.reshape(-1), (right * largest).reshape(-1)))

    def _factors(self, matrix: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        random = torch.Generator().manual_seed(seed & (1 << 63) - 1)
        right = torch.randn((matrix.shape[1], self._rank), generator=random)
        left = right
        for _ in range(self._iterations):
            left = torch.linalg.qr(matrix @ right).Q
            right = matrix.T @ left
        return left, right

    def restore(self, head: memoryview, values: torch.Tensor, numel: int) -> torch.Tensor:
        if len(values) == numel:
            return values
        rows, columns = matrix_shape(numel)
        left = values[: rows * self._rank].view(rows, self._rank)
        right = values[rows * self._rank :].view(columns, self._rank)
        return (left @ right.T).view(-1)[:numel]


def matrix_shape(numel: int) -> tuple[int, int]:
    """Rows and columns of the squarest matrix that holds ``numel`` elements, padded at its end."""
    columns = math.isqrt(numel - 1) + 1
    return -(-numel // columns), columns
