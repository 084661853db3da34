"""Stages that note which blocks are theirs, and what of their pushes and pulls left the node.

As a worker: placed.py GOAL DIRECTORY prefer|balanced [WIDTH]. It goes on until the file GOAL names
the round to end at. With "balanced" it tells nobody where its blocks are best.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import elasticps
from elasticps.core.ids import LEDGER, node_of
from elasticps.wire.control_messages import PlanRow
from elasticps.worker.client import Call, Client
from elasticps.worker.stepping import Stepping

WIDTH, LAYERS = 64, 6
SIZE, BATCH = 60, 12
OPTIONS = {"lr": 0.05, "momentum": 0.9}
PACE_S = 0.03
loss_of = nn.MSELoss()


def layers(width: int = WIDTH) -> nn.Sequential:
    """Of 4 full blocks of 4 KiB and one small one each."""
    torch.manual_seed(0)
    linears = (nn.Linear(width, width) for _ in range(LAYERS))
    return nn.Sequential(*(nn.Sequential(linear, nn.Tanh()) for linear in linears))


def dataset(width: int = WIDTH) -> TensorDataset:
    inputs = torch.randn(SIZE, width, generator=torch.Generator().manual_seed(1))
    return TensorDataset(torch.arange(SIZE), inputs, inputs.roll(1, 1).sin())


class Traffic:
    """Counts the bytes of values and gradients that this worker exchanged with other nodes."""

    def __init__(self) -> None:
        self.nbytes = 0
        self.node = ""

    def install(self) -> None:
        real = Client._asked

        async def asked(client: Client, call: Call, row: PlanRow) -> Any:
            if call.block != LEDGER and node_of(row.primary) != self.node:
                self.nbytes += len(call.payload or b"") + len(call.into or b"")
            return await real(client, call, row)

        Client._asked = asked  # type: ignore[method-assign]


def train(goal: Path, directory: Path, wish: str, width: int) -> None:
    told: list[Any] = []
    real = Stepping.prefer_here

    def prefer_here(worker: Stepping, names: Any) -> None:
        told[:] = sorted(names)
        if wish == "prefer":
            real(worker, names)

    Stepping.prefer_here = prefer_here  # type: ignore[method-assign]
    traffic = Traffic()
    traffic.install()
    with elasticps.join() as run:
        traffic.node = run.node
        pipeline = run.pipeline(layers(width), loss_of)
        optimizer = run.optimizer(pipeline, "sgd", **OPTIONS)
        with (directory / f"{run.node}-{os.getpid()}.steps").open("w") as steps:

            def note(**row: object) -> None:
                steps.write(json.dumps(row) + "\n")
                steps.flush()

            data = run.data(dataset(width), batch_size=BATCH, epochs=1_000_000)
            for samples, inputs, targets in data:
                optimizer.zero_grad()
                note(samples=samples.tolist())
                before = traffic.nbytes
                loss = float(pipeline.forward_backward(inputs, targets))
                optimizer.step()
                note(
                    round=run.round,
                    world=run.world,
                    loss=loss,
                    own=told,
                    foreign=traffic.nbytes - before,
                )
                if goal.exists() and run.round >= int(goal.read_text()):
                    break
                time.sleep(PACE_S)


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int([*sys.argv, WIDTH][4]))
