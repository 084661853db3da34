"""A model that is larger than what its worker may use of memory; notes each step's loss.

As a worker: large.py DIRECTORY ROOM_MIB. The room is for the training alone: what the interpreter
and its libraries take is not counted.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

import elasticps
import elasticps.strategies.model_parallel

WIDTH, LAYERS = 2048, 8
"""Layers of 16 MiB."""
SIZE, BATCH, EPOCHS = 32, 16, 3
MIB = 1 << 20
loss_of = nn.MSELoss()


def layers(device: str) -> nn.Sequential:
    with torch.device(device):
        return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def dataset() -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(SIZE, WIDTH, generator=random)
    return TensorDataset(inputs, inputs.roll(1, 1))


def limit_memory(room: int) -> None:
    """To ``room`` bytes more of address space than there are now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + room
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def train(directory: Path, room: int) -> None:
    torch.set_num_threads(1)
    with elasticps.join() as run:
        limit_memory(room)
        model = layers("meta")
        pipeline = run.pipeline(model, loss_of)
        optimizer = run.optimizer(pipeline, "sgd", lr=1.0)
        losses = []
        for inputs, targets in run.data(dataset(), batch_size=BATCH, epochs=EPOCHS):
            optimizer.zero_grad()
            losses.append(float(pipeline.forward_backward(inputs, targets)))
            optimizer.step()
        held = sum(pipeline.nbytes(at) for at in range(LAYERS) if pipeline.is_held(at))
        result = {"losses": losses, "held": held}
        (directory / f"{run.node}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]) * MIB)
