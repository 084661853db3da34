"""The numbers that a chaos job trains, laid out so that each push can be read back from them.

Gradients are whole multiples of ``SCALE``, which 1 to 4 contributors divide: the mean of a round is
a whole number, and sums of them are exact in float64. SGD with lr 1, from zeros; the gradients are
negative, so that what is counted grows.
"""

from __future__ import annotations

import torch
from torch import nn

SCALE = 12
MOST_WORKERS = 4
BLOCK_BYTES = 16 * 1024
PLACES = 16 * 1024


class Tally(nn.Module):
    """``places``: one element for each push, so that a loss can't hide a duplicate.

    ``bits``: all of it moves by the bits of the lives that a round counts: a torn round shows.
    ``credit`` and ``debit``: what one gains the other loses, in every whole push.
    """

    def __init__(self) -> None:
        super().__init__()
        self.places = _zeros(PLACES)
        self.bits = _zeros(2 * BLOCK_BYTES // 8)
        self.credit = _zeros(BLOCK_BYTES // 8)
        self.debit = _zeros(BLOCK_BYTES // 8)

    def set_gradients(self, place: int, bit: int, amount: int) -> None:
        self.places.grad = torch.zeros_like(self.places)
        self.places.grad[place] = -SCALE
        self.bits.grad = torch.full_like(self.bits, -SCALE * bit)
        self.credit.grad = torch.full_like(self.credit, -SCALE * amount)
        self.debit.grad = torch.full_like(self.debit, SCALE * amount)

    def values(self) -> dict[str, torch.Tensor]:
        return {name: item.detach().clone() for name, item in self.named_parameters()}


def _zeros(count: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(count, dtype=torch.float64))
