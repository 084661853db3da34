"""EASGD beside the paper's equations."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.errors import UsageError
from tests.support.quadratic import Quadratic, Vector, centres
from tests.support.rig import Rig
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    dataset,
    loss_of,
    network,
    train,
)
from tests.support.wire import PATIENCE_S

LR, H, COUNT, STEPS = 0.1, 3, 3, 18
ASYNC: dict[str, Any] = {"consistency": Consistency.ASYNC}


@pytest.mark.parametrize("alpha", [None, 0.1])
async def test_rounds_are_equations_5_and_6_of_the_paper(alpha: float | None) -> None:
    text = f"elastic-averaging:h={H}" + (f",alpha={alpha}" if alpha else "")
    async with Rig(start_workers=COUNT, strategy=text) as rig:
        results = await as_workers(rig, COUNT, Quadratic(steps=STEPS, lr=LR).trained)
    rate = alpha or 0.9 / COUNT
    mine, centre = [np.zeros(5) for _ in range(COUNT)], np.zeros(5)
    for step in range(1, STEPS + 1):
        pulls = [rate * (theta - centre) if step % H == 0 else np.zeros(5) for theta in mine]
        for theta, target, pull in zip(mine, centres(COUNT), pulls, strict=True):
            theta -= LR * (theta - target) + pull
        centre = centre + np.sum(pulls, axis=0)
    for result, theta in zip(sorted(map(tuple, results)), sorted(map(tuple, mine)), strict=True):
        np.testing.assert_allclose(result, theta, atol=1e-5)


async def test_without_rounds_it_is_algorithm_1_of_the_paper() -> None:
    """Two workers that take their steps in turn, so that the order is known."""
    steps, alpha = 12, 0.3
    turns = [threading.Semaphore(1), threading.Semaphore(0)]
    places = iter(range(2))

    def script(run: elasticps.Run) -> tuple[int, Any, Any]:
        model = Vector()
        optimizer = run.optimizer(model, "sgd", lr=LR)
        place = next(places)
        target = torch.tensor(centres(2)[place], dtype=torch.float32)
        for _ in range(steps):
            assert turns[place].acquire(timeout=PATIENCE_S)
            optimizer.zero_grad()
            (0.5 * (model.whole - target).pow(2).sum()).backward()
            optimizer.step()
            turns[1 - place].release()
        theta = model.whole.detach().numpy().copy()
        assert turns[place].acquire(timeout=PATIENCE_S)
        run._member.end()
        turns[1 - place].release()
        return place, theta, model.whole.detach().numpy().copy()

    text = f"elastic-averaging:h={H},alpha={alpha}"
    async with Rig(start_workers=2, strategy=text, **ASYNC) as rig:
        results = await as_workers(rig, 2, script)
    mine, centre = [np.zeros(5), np.zeros(5)], np.zeros(5)
    for step in range(1, steps + 1):
        for theta, target in zip(mine, centres(2), strict=True):
            pull = alpha * (theta - centre) if step % H == 0 else np.zeros(5)
            theta -= LR * (theta - target) + pull
            centre = centre + pull
    for place, theta, ended in results:
        np.testing.assert_allclose(theta, mine[place], atol=1e-5)
        np.testing.assert_allclose(ended, centre, atol=1e-5)


@pytest.mark.parametrize("mode", [{}, ASYNC], ids=["sync", "async"])
async def test_the_centre_is_the_model_when_the_data_are_read(mode: dict[str, Any]) -> None:
    read: Counter[int] = Counter()
    lock = threading.Lock()

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.02)
        numbered = TensorDataset(*dataset().tensors, torch.arange(60))

        def noted(batches: Any) -> Any:
            for inputs, targets, numbers in batches:
                with lock:
                    read.update(numbers.tolist())
                yield inputs, targets

        train(model, optimizer, noted(run.data(numbered, batch_size=BATCH, epochs=8)))
        return model

    async with Rig(start_workers=3, strategy="elastic-averaging:h=2", **mode) as rig:
        models = await as_workers(rig, 3, script)
    assert read == Counter(dict.fromkeys(range(60), 8))
    inputs, targets = dataset().tensors
    with torch.no_grad():
        losses = [float(loss_of(model(inputs), targets)) for model in [network(), *models]]
    assert all(loss < losses[0] / 2 for loss in losses[1:])
    if not mode:
        for model in models[1:]:
            assert_equal(model, models[0])


async def test_backup_workers_are_refused() -> None:
    def script(run: elasticps.Run) -> None:
        run.optimizer(network(), "sgd", lr=0.1)

    async with Rig(strategy="elastic-averaging", backup_workers=1) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, script)
    assert caught.value.field == "backup_workers"
