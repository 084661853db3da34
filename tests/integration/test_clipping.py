"""Gradients clipped by their global norm before the step: as locally, and with several workers."""

from __future__ import annotations

from typing import Any

from torch import nn, optim
from torch.nn.utils import clip_grad_norm_

import elasticps
from elasticps.testing.rig import Rig
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
)

BOUND = 0.5
RATE = 0.01


def clipped_steps(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> list[float]:
    """Train; returns how far each step moved all parameters together."""
    moved = []
    for batch in data:
        before = nn.utils.parameters_to_vector(model.parameters()).detach().double()
        optimizer.zero_grad()
        backward(model, batch)
        norm = clip_grad_norm_(model.parameters(), BOUND)
        assert norm > BOUND, "nothing was clipped"
        optimizer.step()
        after = nn.utils.parameters_to_vector(model.parameters()).detach().double()
        moved.append(float((after - before).norm()))
    return moved


def script(run: elasticps.Run) -> tuple[nn.Module, list[float]]:
    model = network()
    optimizer = run.optimizer(model, "sgd", lr=RATE)
    data = run.data(dataset(), batch_size=BATCH)
    return model, clipped_steps(model, optimizer, data)


async def test_one_worker_clips_as_a_local_run_does() -> None:
    async with Rig() as rig:
        model, _ = await as_worker(rig, script)
    local = network()
    clipped_steps(local, optim.SGD(local.parameters(), lr=RATE), batches())
    assert_equal(model, local)


async def test_no_step_of_several_workers_is_longer_than_the_bound() -> None:
    async with Rig(start_workers=3) as rig:
        results = await as_workers(rig, 3, script)
    for model, moved in results:
        assert_equal(model, results[0][0])
        assert max(moved) <= RATE * BOUND * (1 + 1e-4)
        assert min(moved) > RATE * BOUND / 2
