"""Handwritten digits with a small network: an ordinary training script, made elastic.

elasticps run --nodes 3 examples/digits.py
python examples/digits.py --local          # the same training in one process, without elasticps
"""

from __future__ import annotations

import argparse

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import elasticps

BATCH = 96


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """1,437 digits to train on and 360 held out, pixels scaled to 0..1."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    pixels = torch.tensor(images / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)[order]
    targets = torch.tensor(labels)[order]
    parts = (slice(None, 1437), slice(1437, None))
    train, held_out = (TensorDataset(pixels[part], targets[part]) for part in parts)
    return train, held_out


def network() -> nn.Module:
    torch.manual_seed(0)
    hidden = nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))


def accuracy(model: nn.Module, data: TensorDataset) -> float:
    pixels, targets = data.tensors
    with torch.no_grad():
        return float((model(pixels).argmax(1) == targets).float().mean())


def train_elastic(epochs: int) -> None:
    train, held_out = datasets()
    with elasticps.join() as run:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=1e-3)
        for pixels, targets in run.data(train, batch_size=BATCH, epochs=epochs):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(pixels), targets)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
        if run.is_main:
            print(f"held-out accuracy {accuracy(model, held_out):.4f} after {run.round} rounds")


def train_local(epochs: int) -> None:
    train, held_out = datasets()
    pixels, targets = train.tensors
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels[batch]), targets[batch]).backward()
            optimizer.step()
    print(f"held-out accuracy {accuracy(model, held_out):.4f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=10)
    options.add_argument("--local", action="store_true")
    chosen = options.parse_args()
    (train_local if chosen.local else train_elastic)(chosen.epochs)
