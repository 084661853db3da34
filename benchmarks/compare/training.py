"""One worker of one cell, or the local run.

    training.py TASK REPORT [--local | --pipeline] [--curve EVERY]

Every worker writes what it saw to REPORT/<life>.json when it ends, the main one the model's quality
to REPORT/final.json and its parameters to REPORT/final.npz. With --pipeline the script gives its
model as layers. With --curve it trains in single precision, and the main worker's loss on what was
held out, every so many steps, goes to REPORT/curve.json beside the bytes that it had sent.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tasks import TASKS, Task, loss_of, weights
from torch import nn

import elasticps

WARM_UP_STEPS = 5


def sent_bytes() -> int:
    """What this process has written so far, to sockets for the most part."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(dict(line.split(": ") for line in lines)["wchar"])


class Meter:
    """Steps, their times and the bytes sent, from the end of the warm-up on."""

    def __init__(self) -> None:
        self.steps = 0
        self._times: list[float] = []
        self._sent = 0

    def stepped(self) -> None:
        self.steps += 1
        if self.steps == WARM_UP_STEPS:
            self._sent = sent_bytes()
        if self.steps >= WARM_UP_STEPS:
            self._times.append(time.monotonic())

    def report(self) -> dict[str, float]:
        pauses = [after - before for before, after in itertools.pairwise(self._times)]
        taken = len(pauses)
        return {
            "steps": self.steps,
            "seconds": sum(pauses),
            "measured_steps": taken,
            "bytes_a_step": (sent_bytes() - self._sent) / taken if taken else 0.0,
            "longest_pause_s": max(pauses, default=0.0),
        }


class Curve:
    """The main worker's loss against the bytes that it has sent; ``every`` 0: none is kept."""

    def __init__(self, task: Task, every: int) -> None:
        self.points: list[dict[str, float]] = []
        self._task = task
        self._every = every
        self._sent = sent_bytes()

    def stepped(self, step: int, model: nn.Module) -> None:
        if self._every and step % self._every == 0:
            loss = self._task.evaluated(model)["loss"]
            self.points.append({"step": step, "bytes": sent_bytes() - self._sent, "loss": loss})


def train(task: Task, report: Path, every: int, *, in_stages: bool) -> None:
    meter = Meter()
    curve = Curve(task, every)
    with elasticps.join() as run:
        model = task.model().float() if every else task.model()
        pipeline = run.pipeline(model, loss_of) if in_stages else None
        optimizer = run.optimizer(pipeline or model, "adamw", lr=task.lr)
        for batch in run.data(task.datasets()[0], batch_size=task.batch, epochs=task.epochs):
            optimizer.zero_grad()
            if pipeline is not None:
                loss = pipeline.forward_backward(*batch)
            else:
                loss = loss_of(model(batch[0]), batch[1])
                loss.backward()
            optimizer.step()
            meter.stepped()
            if run.is_main:
                curve.stepped(meter.steps, model)
            run.log(loss=loss, steps=meter.steps)
        was_main = run.is_main
        write(report / f"{os.environ['ELASTICPS_WORKER']}.json", meter.report())
    if was_main:
        write(report / "curve.json", curve.points)
        finish(task, model, report)


def train_local(task: Task, report: Path, rounds: int) -> None:
    model = task.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=task.lr)
    for batch in itertools.islice(task.batches(), rounds):
        optimizer.zero_grad()
        loss_of(model(batch[0]), batch[1]).backward()
        optimizer.step()
    finish(task, model, report)


def finish(task: Task, model: nn.Module, report: Path) -> None:
    np.savez(report / "final.npz", **weights(model))
    write(report / "final.json", task.evaluated(model))


def write(path: Path, figures: Any) -> None:
    fresh = path.with_suffix(".fresh")
    fresh.write_text(json.dumps(figures))
    fresh.rename(path)


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("task", choices=TASKS)
    options.add_argument("report", type=Path)
    options.add_argument("--local", action="store_true")
    options.add_argument("--pipeline", action="store_true")
    options.add_argument("--curve", type=int, default=0, metavar="EVERY")
    chosen = options.parse_args()
    wanted = TASKS[chosen.task]
    if chosen.local:
        train_local(wanted, chosen.report, wanted.rounds)
    else:
        train(wanted, chosen.report, chosen.curve, in_stages=chosen.pipeline)
