"""The demo's worker: examples/digits.py's training, which also writes down what it measures.

As a worker (``elasticps run`` starts it):  training.py --epochs N --report DIR
In one process, without elasticps:          training.py --epochs N --report DIR --local
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import BATCH, accuracy, datasets, network

LEARNING_RATE = 1e-3


class Snapshot:
    """The parameters after the last round before the workers first changed, and which round."""

    def __init__(self, report: Path) -> None:
        self._path = report / "before_first_change.npz"

    def exists(self) -> bool:
        return self._path.exists()

    def write(self, model: nn.Module, rounds: int) -> None:
        values = {name: item.detach().numpy() for name, item in model.named_parameters()}
        np.savez(self._path, rounds=rounds, **values)

    def rounds(self) -> int:
        with np.load(self._path, allow_pickle=False) as stored:
            return int(stored["rounds"])

    def difference(self, model: nn.Module) -> float:
        """The largest difference of any parameter."""
        with np.load(self._path, allow_pickle=False) as stored:
            return max(
                float(np.abs(stored[name] - item.detach().numpy()).max())
                for name, item in model.named_parameters()
            )


def train_elastic(epochs: int, report: Path) -> None:
    import elasticps

    train, held_out = datasets()
    loss_of = nn.CrossEntropyLoss()
    snapshot = Snapshot(report)
    durations: list[float] = []
    with elasticps.join() as run:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=LEARNING_RATE)

        def keep_snapshot() -> None:
            if run.is_main and not snapshot.exists():
                snapshot.write(model, run.round)

        run.on_membership_change(keep_snapshot)
        data = run.data(train, batch_size=BATCH, epochs=epochs)
        started = time.monotonic()
        for pixels, targets in data:
            optimizer.zero_grad()
            loss = loss_of(model(pixels), targets)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            started, before = time.monotonic(), started
            durations.append(started - before)
        if run.is_main:
            write(
                report / "elastic.json",
                accuracy=accuracy(model, held_out),
                rounds=run.round,
                median_step_s=statistics.median(durations),
                longest_step_s=max(durations[1:]),
            )


def train_local(epochs: int, report: Path) -> None:
    train, held_out = datasets()
    pixels, targets = train.tensors
    loss_of = nn.CrossEntropyLoss()
    snapshot = Snapshot(report)
    compared_rounds = snapshot.rounds()
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    rounds = 0
    difference = None
    for epoch in range(epochs):
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(BATCH):
            optimizer.zero_grad()
            loss_of(model(pixels[batch]), targets[batch]).backward()
            optimizer.step()
            rounds += 1
            if rounds == compared_rounds:
                difference = snapshot.difference(model)
    write(
        report / "local.json",
        local_accuracy=accuracy(model, held_out),
        max_param_diff=difference,
        compared_rounds=compared_rounds,
    )


def write(path: Path, **figures: float | None) -> None:
    path.write_text(json.dumps(figures))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, required=True)
    options.add_argument("--report", type=Path, required=True)
    options.add_argument("--local", action="store_true")
    chosen = options.parse_args()
    (train_local if chosen.local else train_elastic)(chosen.epochs, chosen.report)
