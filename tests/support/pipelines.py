"""Pipelines in scripts of tests, and the same training in one process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

import elasticps
from elasticps.api.pipeline import Pipeline

loss_of = nn.MSELoss()


def layers(device: str = "cpu") -> nn.Sequential:
    """Seven layers of unequal size; on the meta device they are drawn by the pipeline."""
    with torch.device(device):
        model = nn.Sequential(
            nn.Linear(6, 40),
            nn.Tanh(),
            nn.Linear(40, 30),
            nn.LayerNorm(30),
            nn.Tanh(),
            nn.Linear(30, 20),
            nn.Linear(20, 1),
        )
    if device != "meta":
        random = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    return model


def drawn(seed: int = 0) -> nn.Sequential:
    """``layers("meta")`` with the values that a pipeline draws for them."""
    model = layers("meta")
    pipeline = Pipeline(model, loss_of, seed=seed)
    for layer in range(len(model)):
        pipeline.draw(layer)
    return model


def numbered(size: int) -> TensorDataset:
    """Each sample is its number, six inputs and a target."""
    inputs = torch.randn(size, 6, generator=torch.Generator().manual_seed(5))
    return TensorDataset(torch.arange(size), inputs, inputs.sum(1, keepdim=True).sin())


def batches(size: int, batch_size: int, epochs: int) -> Iterator[Any]:
    """Inputs and targets in the order that ``run.data`` promises to one worker."""
    data = numbered(size)
    for epoch in range(epochs):
        for part in torch.split(elasticps.sample_order(size, 0, epoch), batch_size):
            yield data[part][1:]


def alone(
    model: nn.Sequential, optimizer: torch.optim.Optimizer, parts: Iterable[Any]
) -> list[float]:
    """The losses of a single process that steps on these batches."""
    losses = []
    for inputs, targets in parts:
        optimizer.zero_grad()
        loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def in_stages(run: elasticps.Run, model: nn.Sequential, name: str, **options: Any) -> Any:
    """The pipeline and the optimizer of a script."""
    pipeline = run.pipeline(model, loss_of)
    return pipeline, run.optimizer(pipeline, name, **options)
