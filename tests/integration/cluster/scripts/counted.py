"""A small training that notes, after each step, which samples have counted, and when.

As a worker: counted.py DIRECTORY EPOCHS
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch
from torch.utils.data import TensorDataset

import elasticps
from tests.integration.cluster.scripts.train import (
    BATCH,
    PACE_S,
    backward,
    dataset,
    network,
    numbers,
)


def train(directory: Path, epochs: int) -> None:
    inputs, targets = dataset().tensors
    numbered = TensorDataset(torch.arange(len(inputs)), inputs, targets)
    with elasticps.join() as run:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.05, momentum=0.9)
        name = f"{run.node}-{os.getpid()}"
        with (directory / f"{name}.steps").open("w") as steps:
            for samples, *batch in run.data(numbered, batch_size=BATCH, epochs=epochs):
                optimizer.zero_grad()
                backward(model, *batch)
                optimizer.step()
                row = {
                    "round": run.round,
                    "world": run.world,
                    "samples": samples.tolist(),
                    "at": time.monotonic(),
                }
                steps.write(json.dumps(row) + "\n")
                steps.flush()
                time.sleep(PACE_S)
        result = {"round": run.round, "numbers": numbers(model)}
        (directory / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
