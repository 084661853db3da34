"""Pipelines over real sockets, in threads of a test, held against the single process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.testing.rig import Rig
from tests.support.pipelines import alone, batches, drawn, in_stages, layers, numbered
from tests.support.scripts import as_worker, as_workers, assert_equal

SIZE, BATCH, EPOCHS = 60, 8, 3
LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adamw": optim.AdamW}
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.05, "momentum": 0.9},
    "adamw": {"lr": 0.01},
}


def reference(model: nn.Sequential, name: str, epochs: int = EPOCHS) -> list[float]:
    return alone(
        model, LOCAL[name](model.parameters(), **OPTIONS[name]), batches(SIZE, BATCH, epochs)
    )


def script(name: str, device: str = "cpu", epochs: int = EPOCHS) -> Any:
    """Trains; returns the model and the mean of the losses that each of its rounds had."""

    def body(run: elasticps.Run) -> tuple[nn.Module, list[float]]:
        model = layers(device)
        pipeline, optimizer = in_stages(run, model, name, **OPTIONS[name])
        losses = []
        for _, inputs, targets in run.data(numbered(SIZE), batch_size=BATCH, epochs=epochs):
            optimizer.zero_grad()
            losses.append(float(pipeline.forward_backward(inputs, targets)))
            optimizer.step()
        return model, losses

    return body


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("count", "stages"), [(1, 1), (2, 2), (3, 3)])
@pytest.mark.parametrize("name", LOCAL)
async def test_a_pipeline_equals_the_single_process_in_loss_and_parameters(
    name: str, count: int, stages: int, schedule: str
) -> None:
    strategy = f"model-parallel:stages={stages},schedule={schedule}"
    async with Rig(start_workers=count, strategy=strategy) as rig:
        results = await as_workers(rig, count, script(name))
    local = layers()
    expected = reference(local, name)
    assert len(expected) >= 20
    for model, losses in results:
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
        assert_equal(model, local, exactly=False)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize("count", [4, 5])
async def test_pipelines_beside_each_other_equal_the_single_process(
    count: int, schedule: str
) -> None:
    """Two of two stages; a fifth worker is spare, and reads samples all the same."""
    strategy = f"model-parallel:stages=2,schedule={schedule},microbatches=3"
    async with Rig(start_workers=count, strategy=strategy) as rig:
        results = await as_workers(rig, count, script("adamw"))
    local = layers()
    reference(local, "adamw")
    for model, _ in results:
        assert_equal(model, local, exactly=False)


@pytest.mark.parametrize(("count", "stages"), [(3, 3), (4, 2)])
async def test_who_has_no_samples_is_a_stage_all_the_same(count: int, stages: int) -> None:
    """Each data epoch ends with a batch of one sample."""

    def body(run: elasticps.Run) -> tuple[nn.Module, int]:
        model = layers()
        pipeline, optimizer = in_stages(run, model, "adamw", lr=0.01)
        for _, inputs, targets in run.data(numbered(9), batch_size=4, epochs=4):
            optimizer.zero_grad()
            pipeline.forward_backward(inputs, targets)
            optimizer.step()
        return model, run.round

    async with Rig(start_workers=count, strategy=f"model-parallel:stages={stages}") as rig:
        results = await as_workers(rig, count, body)
    local = layers()
    alone(local, optim.AdamW(local.parameters(), lr=0.01), batches(9, 4, 4))
    for model, rounds in results:
        assert rounds == 12
        assert_equal(model, local, exactly=False)


# -- stages hold their own layers ---------------------------------------------------------------


async def test_a_model_built_on_the_meta_device_is_never_whole_and_trains_as_any() -> None:
    """What is held at each step are the worker's own layers, which together are all."""
    held: list[set[int]] = []

    def body(run: elasticps.Run) -> dict[str, torch.Tensor]:
        model = layers("meta")
        pipeline, optimizer = in_stages(run, model, "adamw", lr=0.01)
        for _, inputs, targets in run.data(numbered(SIZE), batch_size=BATCH, epochs=EPOCHS):
            optimizer.zero_grad()
            pipeline.forward_backward(inputs, targets)
            optimizer.step()
            held.append({at for at in range(len(model)) if pipeline.is_held(at)})
        return {
            name: item.detach()
            for layer in held[-1] | held[-2]
            if pipeline.is_held(layer)
            for name, item in model.named_parameters()
            if name in pipeline.names(layer)
        }

    async with Rig(start_workers=2, strategy="model-parallel") as rig:
        parts = await as_workers(rig, 2, body)
        whole = await served(rig)
    local = drawn()
    alone(local, optim.AdamW(local.parameters(), lr=0.01), batches(SIZE, BATCH, EPOCHS))
    assert not parts[0].keys() & parts[1].keys()
    joined = parts[0] | parts[1]
    for name, item in local.named_parameters():
        torch.testing.assert_close(joined[name], item.detach(), rtol=0, atol=1e-5)
    assert_equal(whole, local, exactly=False)
    assert set(map(frozenset, held)) == set(map(frozenset, held[-2:]))
    assert len(held[-1]) + len(held[-2]) == len(local)


async def served(rig: Rig) -> nn.Module:
    """What the shards have, as a worker that joins now reads it."""

    def body(run: elasticps.Run) -> nn.Module:
        model = layers()
        run.optimizer(model, "adamw", lr=0.01)
        return model

    rig._job["strategy"] = "data-parallel"
    model: nn.Module = await as_worker(rig, body, "reader")
    return model
