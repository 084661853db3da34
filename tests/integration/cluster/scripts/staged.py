"""A small model trained in stages: notes which samples a step is to have, and that it has counted.

As a worker: staged.py DIRECTORY EPOCHS
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import elasticps
from tests.integration.cluster.scripts.train import PACE_S, numbers
from tests.support.pipelines import in_stages, layers, numbered

SIZE, BATCH = 60, 12
OPTIONS = {"lr": 0.01, "momentum": 0.9}


def train(directory: Path, epochs: int) -> None:
    with elasticps.join() as run:
        model = layers()
        pipeline, optimizer = in_stages(run, model, "sgd", **OPTIONS)
        name = f"{run.node}-{os.getpid()}"
        with (directory / f"{name}.steps").open("w") as steps:

            def note(**row: object) -> None:
                steps.write(json.dumps({**row, "at": time.monotonic()}) + "\n")
                steps.flush()

            for samples, inputs, targets in run.data(
                numbered(SIZE), batch_size=BATCH, epochs=epochs
            ):
                optimizer.zero_grad()
                note(samples=samples.tolist())
                pipeline.forward_backward(inputs, targets)
                optimizer.step()
                note(round=run.round, world=run.world)
                time.sleep(PACE_S)
        result = {"round": run.round, "numbers": numbers(model)}
        (directory / f"{name}.json").write_text(json.dumps(result))


if __name__ == "__main__":
    train(Path(sys.argv[1]), int(sys.argv[2]))
