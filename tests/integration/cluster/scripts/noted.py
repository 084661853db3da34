"""Trains until the file GOAL is there; every worker notes each of its steps in RESULTS.

noted.py GOAL RESULTS
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path

import torch
from torch import nn
from train import BATCH, backward, dataset, network

import elasticps

PACE_S = 0.05


def digest(model: nn.Module) -> str:
    """Equal for equal parameters, to the bit."""
    numbers = torch.cat([item.detach().flatten() for item in model.parameters()])
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()


def train(goal: Path, results: Path) -> None:
    with elasticps.join() as run, (results / f"{os.getpid()}.jsonl").open("w") as notes:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)

        def note(numbers: list[int]) -> None:
            row = {"step": run.steps, "round": run.round, "world": run.world, "samples": numbers}
            notes.write(json.dumps({**row, "digest": digest(model)}) + "\n")
            notes.flush()

        note([])
        numbered = torch.utils.data.TensorDataset(*dataset().tensors, torch.arange(60))
        for inputs, targets, numbers in run.data(numbered, batch_size=BATCH, epochs=1_000_000):
            optimizer.zero_grad()
            backward(model, inputs, targets)
            optimizer.step()
            note(numbers.tolist())
            if goal.exists():
                break
            time.sleep(PACE_S)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("goal", type=Path)
    options.add_argument("results", type=Path)
    chosen = options.parse_args()
    train(chosen.goal, chosen.results)
