"""A script for torchrun that steps for ever: each rank notes where the group met, and its steps.

group.py FOLDER
"""

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
model = DistributedDataParallel(torch.nn.Linear(4, 1))
note = Path(sys.argv[1]) / os.environ["RANK"]
for step in range(1, 1_000_000):
    model(torch.ones(2, 4)).sum().backward()
    note.with_suffix(".tmp").write_text(f"{os.environ['MASTER_PORT']} {step}")
    note.with_suffix(".tmp").rename(note)
