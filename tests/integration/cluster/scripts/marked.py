"""Reads numbered samples once, by the policy `leased`; each leaves its mark in the model.

marked.py FOLDER SAMPLES BATCH SLOW_NODE: workers of SLOW_NODE take four times as long. Each worker
notes its steps as lines of JSON, and at its end the marks: a sample's is the sum of 1 / samples
over the rounds that it counted in.
"""

import json
import os
import sys
import time
from pathlib import Path

import torch

import elasticps

EACH_S = 0.004

folder, samples, batch, slow = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
with elasticps.join() as run, (folder / f"{run.node}-{os.getpid()}.steps").open("w") as notes:
    model = torch.nn.Module()
    model.marks = torch.nn.Parameter(torch.zeros(samples))
    optimizer = run.optimizer(model, "sgd", lr=1.0)
    each_s = EACH_S * (4 if run.node == slow else 1)
    for numbers in run.data(range(samples), batch_size=batch, policy="leased"):
        optimizer.zero_grad()
        (-model.marks[numbers].mean()).backward()
        time.sleep(each_s * len(numbers))
        optimizer.step()
        notes.write(json.dumps({"round": run.round, "samples": numbers.tolist()}) + "\n")
        notes.flush()
    (folder / f"{run.node}-{os.getpid()}.marks").write_text(json.dumps(model.marks.tolist()))
