"""What is trained to compare strategies: handwritten digits, and a small character model.

Both in double precision, so that a difference between a strategy and a local run is the strategy's
and not the rounding's.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))
import charlm
import digits

HELD_OUT_WINDOWS = 64
WINDOWS = 1600

Batch = tuple[torch.Tensor, torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """``model`` is a row of layers, that it can be cut into stages. ``batch`` is the global one."""

    model: Callable[[], nn.Sequential]
    datasets: Callable[[], tuple[TensorDataset, TensorDataset]]
    batch: int
    epochs: int
    lr: float

    @property
    def rounds(self) -> int:
        """How many global batches all epochs have."""
        return self.epochs * -(-len(self.datasets()[0]) // self.batch)

    def evaluated(self, model: nn.Module) -> dict[str, float]:
        """Loss and accuracy on what was held out."""
        inputs, targets = self.datasets()[1].tensors
        with torch.no_grad():
            scores = model(inputs)
            loss = loss_of(scores, targets)
            right = scores.argmax(-1) == targets
        return {"loss": float(loss), "accuracy": float(right.double().mean())}

    def batches(self) -> Iterator[Batch]:
        """Every global batch, in the order that ``run.data`` has too."""
        inputs, targets = self.datasets()[0].tensors
        for epoch in itertools.count():
            order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(epoch))
            for rows in order.split(self.batch):
                yield inputs[rows], targets[rows]


def _digits() -> tuple[TensorDataset, TensorDataset]:
    train, held_out = digits.datasets()
    return _double(train), _double(held_out)


def _double(dataset: TensorDataset) -> TensorDataset:
    inputs, targets = dataset.tensors
    return TensorDataset(inputs.double(), targets)


def _text() -> tuple[TensorDataset, TensorDataset]:
    windows = charlm.library().tensors
    parts = slice(WINDOWS), slice(WINDOWS, WINDOWS + HELD_OUT_WINDOWS)
    train, held_out = (TensorDataset(*(tensor[part] for tensor in windows)) for part in parts)
    return train, held_out


class _Front(nn.Module):
    """What a character and its place are to the layers."""

    def __init__(self, whole: charlm.CharacterModel) -> None:
        super().__init__()
        self.characters, self.places = whole.characters, whole.places

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.characters(x) + self.places.weight[: x.shape[1]]


def _characters() -> nn.Sequential:
    torch.manual_seed(0)
    whole = charlm.CharacterModel(layers=1, width=48, heads=2).double()
    return nn.Sequential(_Front(whole), *whole.layers, nn.Sequential(whole.norm, whole.head))


def loss_of(scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The mean over all that is classified: digits, or the characters of a window."""
    return functional.cross_entropy(scores.flatten(0, -2), targets.flatten())


TASKS: dict[str, Task] = {
    "digits": Task(
        model=lambda: digits.network().double(),
        datasets=_digits,
        batch=96,
        epochs=30,
        lr=1e-3,
    ),
    "characters": Task(model=_characters, datasets=_text, batch=24, epochs=4, lr=3e-3),
}


def weights(model: nn.Module) -> dict[str, Any]:
    """The parameters by name, as arrays."""
    return {name: item.detach().numpy() for name, item in model.named_parameters()}
