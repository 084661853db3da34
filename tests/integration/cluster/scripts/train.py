"""A small training that goes on until the file GOAL names the round to end at.

As a worker:  train.py GOAL RESULTS [--optimizer NAME] [--lr LR] [--clip-grad-norm BOUND]
In one process, without elasticps: ``trained_alone``
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

BATCH = 12
PACE_S = 0.05
"""A step's pause: the machine is for the cluster, the training only has to go on."""


def dataset() -> TensorDataset:
    random = torch.Generator().manual_seed(3)
    inputs = torch.randn(60, 8, generator=random)
    return TensorDataset(inputs, torch.sin(inputs @ torch.randn(8, 4, generator=random)))


def network() -> nn.Module:
    """Nine blocks of 4 KiB and less, the ledger not counted."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4)
    )


def backward(model: nn.Module, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    loss = (model(inputs) - targets).pow(2).mean()
    loss.backward()
    return loss


def numbers(model: nn.Module) -> list[float]:
    return [number for item in model.parameters() for number in item.detach().flatten().tolist()]


def train(goal: Path, results: Path, optimizer_name: str, lr: float, bound: float | None) -> None:
    import elasticps

    with elasticps.join() as run:
        model = network()
        optimizer = run.optimizer(model, optimizer_name, lr=lr, clip_grad_norm=bound)
        for inputs, targets in run.data(dataset(), batch_size=BATCH, epochs=1_000_000):
            optimizer.zero_grad()
            loss = backward(model, inputs, targets)
            optimizer.step()
            run.log(loss=loss)
            if goal.exists() and run.round >= int(goal.read_text()):
                break
            time.sleep(PACE_S)
        result = {"round": run.round, "numbers": numbers(model)}
        (results / f"{run.node}.json").write_text(json.dumps(result))


def trained_alone(
    rounds: int,
    lr: float,
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
    bound: float | None = None,
) -> list[float]:
    """The parameters after as many steps in one process."""
    model = network()
    optimizer = kind(model.parameters(), lr=lr)
    inputs, targets = dataset().tensors
    done = 0
    while done < rounds:
        random = torch.Generator().manual_seed(done * BATCH // len(inputs))
        for batch in torch.randperm(len(inputs), generator=random).split(BATCH):
            if done < rounds:
                optimizer.zero_grad()
                backward(model, inputs[batch], targets[batch])
                if bound is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), bound)
                optimizer.step()
                done += 1
    return numbers(model)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("goal", type=Path)
    options.add_argument("results", type=Path)
    options.add_argument("--optimizer", default="sgd")
    options.add_argument("--lr", type=float, default=0.05)
    options.add_argument("--clip-grad-norm", type=float)
    chosen = options.parse_args()
    train(chosen.goal, chosen.results, chosen.optimizer, chosen.lr, chosen.clip_grad_norm)
