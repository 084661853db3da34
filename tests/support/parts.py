"""Jobs of several strategies by name: what trains in them, and the same alone."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.errors import JobFailed
from tests.support.scripts import BATCH, backward, batches, dataset, network, train

DENSE_AND_REST = "0.*=all-reduce:publish_every=5; *=data-parallel"
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9},
    "adamw": {"lr": 0.01},
    "adafactor": {"lr": 0.01},
}
LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adamw": optim.AdamW, "adafactor": optim.Adafactor}


def trained(name: str, epochs: int) -> Any:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, name, **OPTIONS[name])
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=epochs))
        return model

    return script


def alone(name: str, epochs: int) -> nn.Module:
    model = network()
    train(model, LOCAL[name](model.parameters(), **OPTIONS[name]), batches(epochs=epochs))
    return model


Used = dict[int, list[int]]
"""The samples of each round."""


def numbered() -> TensorDataset:
    return TensorDataset(torch.arange(60), *dataset().tensors)


class Recorded:
    """A script that notes, for every round that it has been in, the samples that it had."""

    def __init__(self, epochs: int, **options: float) -> None:
        self.used: Used = {}
        self.worlds: list[int] = []
        self._epochs = epochs
        self._options = options or OPTIONS["sgd"]
        self._lock = threading.Lock()

    def run(self, run: elasticps.Run, before: Any = lambda _: None) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", **self._options)
        had: list[int] = []
        for numbers, *batch in run.data(numbered(), batch_size=BATCH, epochs=self._epochs):
            before(run)
            optimizer.zero_grad()
            backward(model, batch)
            round_, self.worlds = run.round, [*self.worlds, run.world]
            had += numbers.tolist()
            optimizer.step()
            if run.round > round_:
                with self._lock:
                    self.used.setdefault(round_, []).extend(had)
                had = []
        return model

    def replayed(self) -> nn.Module:
        """A single process that has the same samples in each step."""
        model = network()
        optimizer = optim.SGD(model.parameters(), **self._options)
        data = dataset()
        train(model, optimizer, (data[self.used[round_]] for round_ in sorted(self.used)))
        return model

    def counts(self) -> Counter[int]:
        return Counter(number for numbers in self.used.values() for number in numbers)


def dies_at(run: elasticps.Run, call: str) -> None:
    """From now on the worker dies where it sums with others, or its exchange comes to ``call``."""

    def died(*_: Any, **__: Any) -> Any:
        raise JobFailed("as a process that dies")

    async def died_there(*_: Any, **__: Any) -> Any:
        died()

    if call == "sum":
        run._membership.peer_calls.sum = died  # type: ignore[method-assign, union-attr]
    else:
        setattr(run._membership.exchange, call, died_there)
