"""A training whose steps draw random numbers, and whose model has statistics of its own.

As a worker:  regularized.py RESULTS ROUNDS GATE [--wait-at ROUND] [--as-seeded]
All but the main worker wait at a round until the file GATE is there. The main worker writes its
model to RESULTS.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.data import TensorDataset

BATCH = 12
PACE_S = 0.02


def train(results: Path, rounds: int, gate: Path, wait_at: int, *, as_seeded: bool) -> None:
    import elasticps

    with elasticps.join() as run:
        torch.manual_seed(3)
        model = nn.Sequential(
            nn.Linear(8, 64, bias=False), nn.BatchNorm1d(64), nn.Dropout(0.4), nn.Linear(64, 4)
        )
        optimizer = run.optimizer(model, "adam", lr=0.01)
        inputs = torch.randn(60, 8)
        data = TensorDataset(inputs, torch.sin(inputs @ torch.randn(8, 4)))
        if not as_seeded:
            run.seed(1)
        for samples, targets in run.data(data, batch_size=BATCH, epochs=1_000_000):
            while run.round == wait_at and not run.is_main and not gate.exists():
                time.sleep(PACE_S)
            optimizer.zero_grad()
            (model(samples) - targets).pow(2).mean().backward()
            optimizer.step()
            if run.round == rounds:
                break
            time.sleep(PACE_S)
        if run.is_main:
            save_file(model.state_dict(), results)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("results", type=Path)
    options.add_argument("rounds", type=int)
    options.add_argument("gate", type=Path)
    options.add_argument("--wait-at", type=int, default=-1)
    options.add_argument("--as-seeded", action="store_true")
    chosen = options.parse_args()
    train(
        chosen.results,
        chosen.rounds,
        chosen.gate,
        chosen.wait_at,
        as_seeded=chosen.as_seeded,
    )
