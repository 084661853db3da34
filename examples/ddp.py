"""A script written for torchrun, unchanged: DistributedDataParallel on a group of its own.

torchrun --nproc-per-node 2 examples/ddp.py
elasticps run --nodes 2 --strategy all-reduce:torchrun=true examples/ddp.py
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset


def dataset(size: int = 512) -> TensorDataset:
    random = torch.Generator().manual_seed(1)
    inputs = torch.randn(size, 8, generator=random)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True))


def main(epochs: int) -> None:
    dist.init_process_group("gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    data = dataset()
    sampler: DistributedSampler[TensorDataset] = DistributedSampler(data)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for inputs, targets in DataLoader(data, batch_size=32, sampler=sampler):
            optimizer.zero_grad()
            loss = nn.functional.mse_loss(model(inputs), targets)
            loss.backward()
            optimizer.step()
    if rank == 0:
        local = os.environ["LOCAL_RANK"]
        print(f"loss {loss.item():.4f} as rank {rank} (local rank {local}) of {world}")
    dist.destroy_process_group()


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--epochs", type=int, default=5)
    main(options.parse_args().epochs)
