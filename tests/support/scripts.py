"""Training scripts as users write them, run by threads of the test in place of processes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.core.ids import LEDGER
from elasticps.testing.rig import Rig

SIZE = 60
BATCH = 8
loss_of = nn.MSELoss()


def dataset(size: int = SIZE) -> TensorDataset:
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(size, 6, generator=random)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True) * 2 + 1)


def network(seed: int = 0) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model


def batches(epochs: int = 1, size: int = SIZE, batch_size: int = BATCH) -> Iterator[Any]:
    """A local run's batches, in the order that ``run.data`` promises."""
    data = dataset(size)
    for epoch in range(epochs):
        for part in torch.split(elasticps.sample_order(size, 0, epoch), batch_size):
            yield data[part]


def backward(model: nn.Module, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    loss: torch.Tensor = loss_of(model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def train(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> None:
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module, *, exactly: bool = True) -> None:
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        if exactly:
            assert torch.equal(mine, its)
        else:
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-5)


Script = Callable[[elasticps.Run], Any]


def joined(rig: Rig, uid: str, script: Script) -> Any:
    """``script`` as a worker's process runs it, but in this thread; its exit is returned."""
    try:
        with elasticps.join(rig.environment(uid)) as run:
            return script(run)
    except elasticps.WorkerRetired as left:
        return left


async def as_worker(rig: Rig, script: Script, uid: str = "w1") -> Any:
    """What ``script`` returns, from a thread of its own."""
    return await asyncio.to_thread(joined, rig, uid, script)


async def as_workers(rig: Rig, count: int, script: Script) -> list[Any]:
    return await asyncio.gather(*(as_worker(rig, script, f"w{n}") for n in range(count)))


def shards_of(rig: Rig, model: nn.Module) -> nn.Module:
    """``model`` with what the shards have of it."""
    parameters = list(model.parameters())
    for id_ in rig.entries:
        if id_ != LEDGER:
            tensor = rig.primary(id_).parameter_block(id_).tensor
            block = tensor.block
            into = parameters[block.parameter].detach().view(-1)[block.start : block.stop]
            into.copy_(tensor.value.view(-1))
    return model


def sgd(run: elasticps.Run, **options: Any) -> Any:
    return run.optimizer(network(), "sgd", **{"lr": 0.01, **options})
