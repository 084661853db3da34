"""The demo's worker: examples/digits.py's training, which also writes down what it measures.

As a worker, until the round that the demo writes to DIR/rounds:  training.py --report DIR
In one process, without elasticps, as many rounds:                training.py --report DIR --local
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from digits import BATCH, accuracy, datasets, network

LEARNING_RATE = 1e-3
MOST_EPOCHS = 10_000


def in_double() -> list[TensorDataset]:
    """The data in float64.

    Workers sum gradients in another order than one process does. In float32 that rounding flips a
    ReLU sooner or later and the two runs part for good, rightly; in float64 they stay comparable
    for as many rounds as the demo likes, so that a real difference shows.
    """
    return [TensorDataset(data.tensors[0].double(), data.tensors[1]) for data in datasets()]


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


class LastRound:
    """When to stop: the demo decides once it has seen how fast this machine is."""

    def __init__(self, report: Path) -> None:
        self._path = report / "rounds"
        self._rounds: int | None = None

    def is_reached(self, rounds: int) -> bool:
        if self._rounds is None and self._path.exists():
            self._rounds = int(self._path.read_text())
        return self._rounds is not None and rounds >= self._rounds


def train_elastic(report: Path) -> None:
    import elasticps

    train, held_out = in_double()
    loss_of = nn.CrossEntropyLoss()
    snapshot = Snapshot(report)
    durations: list[float] = []
    with elasticps.join() as run:
        model = network().double()
        optimizer = run.optimizer(model, "adamw", lr=LEARNING_RATE)

        def keep_snapshot() -> None:
            if run.is_main and not snapshot.exists():
                snapshot.write(model, run.round)

        run.on_membership_change(keep_snapshot)
        data = run.data(train, batch_size=BATCH, epochs=MOST_EPOCHS)
        last_round = LastRound(report)
        started = time.monotonic()
        for pixels, targets in data:
            optimizer.zero_grad()
            loss = loss_of(model(pixels), targets)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            started, before = time.monotonic(), started
            durations.append(started - before)
            if last_round.is_reached(run.round):
                break
        if run.is_main:
            write(
                report / "elastic.json",
                accuracy=accuracy(model, held_out),
                rounds=run.round,
                median_step_s=statistics.median(durations),
                longest_step_s=max(durations[1:]),
            )


def train_local(report: Path) -> None:
    train, held_out = in_double()
    pixels, targets = train.tensors
    loss_of = nn.CrossEntropyLoss()
    snapshot = Snapshot(report)
    compared_rounds = snapshot.rounds()
    trained_rounds = json.loads((report / "elastic.json").read_text())["rounds"]
    model = network().double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    difference = None
    for rounds, batch in enumerate(islice(batches(len(train)), trained_rounds), 1):
        optimizer.zero_grad()
        loss_of(model(pixels[batch]), targets[batch]).backward()
        optimizer.step()
        if rounds == compared_rounds:
            difference = snapshot.difference(model)
    write(
        report / "local.json",
        local_accuracy=accuracy(model, held_out),
        max_param_diff=difference,
        compared_rounds=compared_rounds,
    )


def batches(size: int) -> Iterator[torch.Tensor]:
    """Shuffled passes over the data, in the order that run.data has too."""
    for epoch in range(MOST_EPOCHS):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(epoch))
        yield from order.split(BATCH)


def write(path: Path, **figures: float | None) -> None:
    path.write_text(json.dumps(figures))


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--report", type=Path, required=True)
    options.add_argument("--local", action="store_true")
    chosen = options.parse_args()
    (train_local if chosen.local else train_elastic)(chosen.report)
