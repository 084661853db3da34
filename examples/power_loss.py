"""Everything loses its power; another cluster goes on from the last checkpoint.

elasticps run --nodes 2 --checkpoint-dir saved --checkpoint-every 5 examples/power_loss.py
# Pull the plug: kill -9 it while it trains. Then, to the same bits (on another number of nodes sums
# are rounded in another order: to the same numbers but for that):
elasticps run --nodes 2 --resume saved examples/power_loss.py
"""

from __future__ import annotations

import argparse
import hashlib
import time

import torch
from torch import nn
from torch.utils.data import TensorDataset

import elasticps


def dataset(size: int = 256) -> TensorDataset:
    inputs = torch.randn(size, 8, generator=torch.Generator().manual_seed(1))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def digest(model: nn.Module) -> str:
    """The same for models that are equal to the last bit."""
    found = hashlib.sha256()
    for item in model.parameters():
        found.update(item.detach().numpy().tobytes())
    return found.hexdigest()[:16]


def main(epochs: int, pause_s: float) -> None:
    with elasticps.join() as run:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        if run.is_main and run.round:
            print(f"going on after round {run.round}")
        for inputs, targets in run.data(dataset(), batch_size=32, epochs=epochs):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
            run.log(loss=loss)
            time.sleep(pause_s)  # so that there is time to pull the plug
        if run.is_main:
            print(f"ended after {run.round} rounds, weights {digest(model)}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=6)
    options.add_argument("--pause-s", type=float, default=0.2)
    chosen = options.parse_args()
    main(chosen.epochs, chosen.pause_s)
