"""Handwritten digits by a model in stages: each worker holds and pushes its own layers alone.

elasticps run --nodes 3 --strategy model-parallel examples/stages.py
elasticps run --nodes 4 --strategy model-parallel:stages=2 examples/stages.py    # two pipelines
elasticps run --nodes 2 examples/stages.py                # data-parallel: the same script, whole
"""

from __future__ import annotations

import argparse

import torch
from digits import BATCH, accuracy, datasets, network
from torch import nn

import elasticps


def train(epochs: int) -> None:
    train_set, held_out = datasets()
    with elasticps.join() as run:
        model = network()  # built whole, so it is whole again at the end; see docs/strategies.md
        assert isinstance(model, nn.Sequential)
        pipeline = run.pipeline(model, nn.functional.cross_entropy)
        optimizer = run.optimizer(pipeline, "adamw", lr=1e-3)
        for pixels, targets in run.data(train_set, batch_size=BATCH, epochs=epochs):
            optimizer.zero_grad()
            loss = pipeline.forward_backward(pixels, targets)
            optimizer.step()
            run.log(loss=loss)
        if run.is_main:
            print(f"held-out accuracy {accuracy(model, held_out):.4f} after {run.round} rounds")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=10)
    torch.set_num_threads(1)  # stages of one machine compute beside each other
    train(options.parse_args().epochs)
