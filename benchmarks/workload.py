"""What every contestant does in a step: random gradients out, SGD on them, all new values back.

The output is poisoned before each step (but where it comes as a difference), and every element of
it is held afterwards against ``torch.optim.SGD`` that did the same steps here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

import torch

LR = 0.01
GRADIENTS = 2
"""Different ones, by turns: memory that holds what it held last time would be noticed."""
SEED = 20
BLOCK_BYTES = 4 << 20


@dataclass(frozen=True, kw_only=True)
class Size:
    """``nbytes`` of float32 in all, moved in pieces of ``block_bytes``."""

    nbytes: int
    block_bytes: int = BLOCK_BYTES

    @property
    def numel(self) -> int:
        return self.nbytes // 4

    @property
    def block_numel(self) -> int:
        return min(self.numel, self.block_bytes // 4)

    def blocks(self, tensor: torch.Tensor) -> Sequence[torch.Tensor]:
        """Views of a flat tensor, block by block."""
        return tensor.split(self.block_numel)


def add_size_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--nbytes", type=int, required=True)
    parser.add_argument("--block-bytes", type=int, default=BLOCK_BYTES)


def size_from(options: argparse.Namespace) -> Size:
    return Size(nbytes=options.nbytes, block_bytes=options.block_bytes)


def first_values(size: Size) -> torch.Tensor:
    return _random(size, SEED)


def gradients(size: Size) -> list[torch.Tensor]:
    return [_random(size, SEED + 1 + number) for number in range(GRADIENTS)]


def poison(output: torch.Tensor) -> None:
    output.fill_(torch.nan)


def apply(value: torch.Tensor, gradient: torch.Tensor) -> None:
    """SGD in place, by one kernel and without an allocation: what a tuned server of a peer does."""
    value.add_(gradient, alpha=-LR)


def most_lost(size: Size, steps: int) -> float:
    """How far int8 may put an element off: half of one of 127 steps, of each gradient and once of
    what a round changes. A step that was not made, or made twice, puts most further off."""
    largest = max(float(gradient.abs().max()) for gradient in gradients(size))
    return LR * largest / 254 * (steps + 2)


def wrong_elements(output: torch.Tensor, size: Size, steps: int, lost: float = 0.0) -> int:
    """How many elements are not what ``torch.optim.SGD`` makes of the same steps, but for what
    coding them may have ``lost``."""
    expected = torch.nn.Parameter(first_values(size))
    optimizer = torch.optim.SGD([expected], lr=LR)
    grads = gradients(size)
    for step in range(steps):
        expected.grad = grads[step % GRADIENTS]
        optimizer.step()
    close = torch.isclose(output.detach().view(-1), expected.detach(), rtol=1e-5, atol=1e-5 + lost)
    return int((~close).sum())


def _random(size: Size, seed: int) -> torch.Tensor:
    return torch.randn(size.numel, generator=torch.Generator().manual_seed(seed))
