"""What ``benchmarks/data.py`` submits: reads numbered samples, each of which leaves its mark.

As a worker: data_train.py FOLDER POLICY SAMPLES BATCH SECONDS_A_SAMPLE SLOW_NODE LOADERS
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import torch

import elasticps

SLOWED = 4


class Marks(torch.nn.Module):
    """One parameter a sample: a step on a batch moves those of its samples, by 1 / its round."""

    def __init__(self, samples: int) -> None:
        super().__init__()
        self.marks = torch.nn.Parameter(torch.zeros(samples))

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        return -self.marks[samples].mean()


def train(
    folder: Path, policy: str, samples: int, batch: int, each_s: float, slow: str, loaders: int
) -> None:
    with elasticps.join() as run:
        model = Marks(samples)
        optimizer = run.optimizer(model, "sgd", lr=1.0)
        each_s = each_s * SLOWED if run.node == slow else each_s
        data = run.data(range(samples), batch_size=batch, policy=policy, num_workers=loaders)
        name = f"{run.node}-{os.getpid()}"
        with (folder / f"{name}.steps").open("w") as steps:
            for numbers in data:
                optimizer.zero_grad()
                model(numbers).backward()
                time.sleep(each_s * len(numbers))
                optimizer.step()
                row = {"round": run.round, "at": time.monotonic(), "samples": numbers.tolist()}
                steps.write(json.dumps(row) + "\n")
                steps.flush()
        (folder / f"{name}.marks").write_text(json.dumps(model.marks.tolist()))


if __name__ == "__main__":
    given = sys.argv[1:]
    train(
        Path(given[0]),
        given[1],
        int(given[2]),
        int(given[3]),
        float(given[4]),
        given[5],
        int(given[6]),
    )
