"""A LightningModule on an elastic job: handwritten digits, as examples/digits.py learns them.

elasticps run --nodes 2 examples/lightning_digits.py
"""

from __future__ import annotations

import argparse

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

import elasticps

BATCH = 96


def datasets() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    pixels = torch.tensor(images / 16.0, dtype=torch.float32)[order]
    targets = torch.tensor(labels)[order]
    return TensorDataset(pixels[:1437], targets[:1437]), TensorDataset(
        pixels[1437:], targets[1437:]
    )


class Digits(lightning.LightningModule):
    def __init__(self, run: elasticps.Run) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
        self._run = run

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], _: int) -> torch.Tensor:
        pixels, targets = batch
        loss = nn.functional.cross_entropy(self.network(pixels), targets)
        self._run.log(loss=loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self._run.optimizer(self, "adamw", lr=3e-3)


def main(epochs: int) -> None:
    train, held_out = datasets()
    pixels, targets = held_out.tensors
    with elasticps.join() as run:
        module = Digits(run)
        trainer = lightning.Trainer(
            accelerator="cpu",
            devices=1,  # of this worker: the job is what has several
            max_epochs=1,  # one pass over what run.data gives
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
        trainer.fit(module, run.data(train, batch_size=BATCH, epochs=epochs))
        with torch.no_grad():
            right = (module.network(pixels).argmax(1) == targets).float().mean()
        if run.is_main:
            print(f"held-out accuracy {right:.4f} after {run.round} rounds")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=5)
    main(options.parse_args().epochs)
