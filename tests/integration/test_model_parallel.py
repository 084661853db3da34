"""Pipelines over real sockets, in threads of a test, held against the single process."""

from __future__ import annotations

import asyncio
import queue
import re
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.errors import UsageError
from elasticps.testing.rig import Rig
from tests.support.cases import short_are
from tests.support.pipelines import alone, batches, drawn, in_stages, layers, numbered
from tests.support.scripts import as_worker, as_workers, assert_equal, shards_of

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


@pytest.mark.parametrize(
    ("name", "stages", "schedule"),
    short_are(
        ("sgd", 1, "1f1b"),
        ("adamw", 2, "gpipe"),
        ("sgd", 3, "1f1b"),
        of=product(LOCAL, (1, 2, 3), ("gpipe", "1f1b")),
    ),
)
async def test_a_pipeline_equals_the_single_process_in_loss_and_parameters(
    name: str, stages: int, schedule: str
) -> None:
    strategy = f"model-parallel:stages={stages},schedule={schedule}"
    async with Rig(start_workers=stages, strategy=strategy) as rig:
        results = await as_workers(rig, stages, script(name))
    local = layers()
    expected = reference(local, name)
    assert len(expected) >= 20
    for model, losses in results:
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)
        assert_equal(model, local, exactly=False)


@pytest.mark.parametrize(
    ("count", "schedule"),
    short_are((4, "gpipe"), (5, "1f1b"), of=product((4, 5), ("gpipe", "1f1b"))),
)
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
        whole = shards_of(rig, layers())
    local = drawn()
    alone(local, optim.AdamW(local.parameters(), lr=0.01), batches(SIZE, BATCH, EPOCHS))
    assert not parts[0].keys() & parts[1].keys()
    joined = parts[0] | parts[1]
    for name, item in local.named_parameters():
        torch.testing.assert_close(joined[name], item.detach(), rtol=0, atol=1e-5)
    assert_equal(whole, local, exactly=False)
    assert set(map(frozenset, held)) == set(map(frozenset, held[-2:]))
    assert len(held[-1]) + len(held[-2]) == len(local)


@pytest.mark.parametrize("resumed_as", ["model-parallel", "data-parallel"])
async def test_a_checkpoint_of_stages_is_one_of_the_whole_model(
    resumed_as: str, tmp_path: Path
) -> None:
    """Two stages stop after 20 rounds; three, or three workers that have all, train to the end."""

    def body(run: elasticps.Run, stop_at: int = 0) -> int:
        pipeline, optimizer = in_stages(run, layers("meta"), "adamw", lr=0.01)
        began_at = run.round
        for _, inputs, targets in run.data(numbered(SIZE), batch_size=BATCH, epochs=EPOCHS):
            optimizer.zero_grad()
            pipeline.forward_backward(inputs, targets)
            optimizer.step()
            if run.round == stop_at:
                break
        return began_at

    saved: dict[str, Any] = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 20}
    async with Rig(start_workers=2, strategy="model-parallel", **saved) as rig:
        await as_workers(rig, 2, lambda run: body(run, stop_at=20))
    async with Rig(start_workers=3, strategy=resumed_as, resume=str(tmp_path)) as rig:
        assert await as_workers(rig, 3, body) == [20] * 3
        whole = shards_of(rig, layers())
    local = drawn()
    alone(local, optim.AdamW(local.parameters(), lr=0.01), batches(SIZE, BATCH, EPOCHS))
    assert_equal(whole, local, exactly=False)


# -- what a user reads --------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["model-parallel", "data-parallel"])
async def test_the_docs_example_learns_in_stages_and_whole(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (Path(__file__).resolve().parents[2] / "docs" / "strategies.md").read_text()
    (source,) = re.findall(r"```python\n# stages.py\n(.*?)```", text, re.DOTALL)
    join = elasticps.join
    lines: list[str] = []
    monkeypatch.setitem(elasticps.__dict__, "join", lambda: join(rig.environment(names.get())))
    names: queue.Queue[str] = queue.Queue()

    def life(uid: str) -> None:
        names.put(uid)
        exec(source, {"print": lines.append})

    async with Rig(start_workers=2, strategy=strategy) as rig:
        await asyncio.gather(*(asyncio.to_thread(life, uid) for uid in ("w0", "w1")))
    line = lines[-1]
    found = re.fullmatch(r"loss ([\d.]+) after 100 rounds on 2 workers", line)
    assert found is not None, line
    assert float(found[1]) < 0.1  # it begins near 1


@pytest.mark.parametrize(
    ("strategy", "job", "field"),
    [
        ("model-parallel:schedule=zigzag", {}, "schedule"),
        ("model-parallel:stages=-1", {}, "stages"),
        ("model-parallel", {"consistency": Consistency.ASYNC}, "consistency"),
        ("model-parallel", {"backup_workers": 1}, "consistency"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    strategy: str, job: dict[str, Any], field: str
) -> None:
    def body(run: elasticps.Run) -> object:
        try:
            in_stages(run, layers(), "sgd", lr=0.01)
        except UsageError as error:
            return error
        return None

    async with Rig(start_workers=1, strategy=strategy, **job) as rig:
        error = await as_worker(rig, body)
    assert isinstance(error, UsageError)
    assert field in str(error)


async def test_a_misused_pipeline_says_what_it_wants() -> None:
    def body(run: elasticps.Run) -> list[str]:
        told = []

        def tell(act: Callable[[], object]) -> None:
            try:
                act()
            except UsageError as error:
                told.append(str(error))

        tell(lambda: run.optimizer(layers(), "sgd", lr=0.01))
        pipeline, optimizer = in_stages(run, layers(), "sgd", lr=0.01)
        tell(optimizer.step)
        tell(lambda: pipeline.forward_backward(torch.ones(2, 6), torch.ones(3, 1)))
        pipeline.forward_backward(torch.ones(2, 6), torch.ones(2, 1))
        tell(lambda: pipeline.forward_backward(torch.ones(2, 6), torch.ones(2, 1)))
        return told

    async with Rig(start_workers=1, strategy="model-parallel") as rig:
        whole, without, uneven, twice = await as_worker(rig, body)
    assert "must be given as layers" in whole
    assert "a step without forward_backward()" in without
    assert "2 inputs and 3 targets" in uneven
    assert "twice before optimizer.step()" in twice


async def test_too_little_memory_is_told_with_what_there_is() -> None:
    def body(run: elasticps.Run) -> object:
        model = nn.Sequential(*(nn.Linear(600, 600) for _ in range(3)))
        pipeline, _ = in_stages(run, model, "sgd", lr=0.01)
        try:
            pipeline.forward_backward(torch.ones(2, 600), torch.ones(2, 600))
        except UsageError as error:
            return error
        return None

    async with Rig(start_workers=1, strategy="model-parallel:memory=5") as rig:
        error = await as_worker(rig, body)
    assert isinstance(error, UsageError)
    assert "no cut of 12 MiB of layers fits 1 stages" in str(error)
    assert "5 MiB" in str(error)
