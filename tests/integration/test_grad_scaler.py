"""``torch.amp.GradScaler``: its scale comes off before a push, and an overflow stops nobody."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.testing.rig import Rig
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    batches,
    dataset,
    loss_of,
    network,
)

OVERFLOWS = {2, 3}
"""Steps at which a gradient is infinite."""


def scaled(
    model: nn.Module, optimizer: optim.Optimizer, data: Any, *, clips: bool, overflows: set[int]
) -> list[float]:
    """Train as torch's documentation has it; returns the scales."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=4)
    scales = []
    for step, (inputs, targets) in enumerate(data):
        optimizer.zero_grad()
        scaler.scale(loss_of(model(inputs), targets)).backward()
        if step in overflows:
            next(model.parameters()).grad[0, 0] = torch.inf
        if clips:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


@pytest.mark.parametrize("clips", [False, True])
async def test_a_scaler_works_as_on_the_local_optimizer(*, clips: bool) -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, list[float]]:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        data = run.data(dataset(), batch_size=BATCH)
        return model, scaled(model, optimizer, data, clips=clips, overflows=OVERFLOWS)

    async with Rig() as rig:
        model, scales = await as_worker(rig, script)
    wanted = network()
    local = optim.AdamW(wanted.parameters(), lr=0.01)
    assert scaled(wanted, local, batches(), clips=clips, overflows=OVERFLOWS) == scales
    assert scales[3] == 256.0, "nothing has overflowed"
    assert_equal(model, wanted)


async def test_a_worker_whose_gradients_overflow_keeps_no_other_waiting() -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, list[float]]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        overflows = OVERFLOWS if run.is_main else set[int]()
        data = run.data(dataset(64), batch_size=BATCH)
        return model, scaled(model, optimizer, data, clips=False, overflows=overflows)

    async with Rig(start_workers=2) as rig:
        (one, its), (other, others) = await as_workers(rig, 2, script)
    assert_equal(one, other)
    assert all(bool(item.isfinite().all()) for item in one.parameters())
    assert sorted([its[3], others[3]]) == [256.0, 2048.0]
