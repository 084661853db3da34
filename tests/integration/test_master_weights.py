"""Parameters in half precision, with float32 copies of them on the servers that step."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn, optim

import elasticps
from elasticps.checkpoint.directory import newest
from elasticps.checkpoint.export import export
from elasticps.core.ids import BlockId
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
from tests.support.wire import PATIENCE_S, eventually

LR = 1e-3
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "adamw": lambda items: optim.AdamW(items, lr=LR),
    "sgd": lambda items: optim.SGD(items, lr=LR),
    "adafactor": lambda items: optim.Adafactor(items, lr=LR),
}
"""One with state, one without, one that needs whole parameters."""


def half(dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    return network().to(dtype)


def backward(model: nn.Module, batch: Any) -> None:
    inputs, targets = batch
    dtype = next(model.parameters()).dtype
    loss_of(model(inputs.to(dtype)), targets.to(dtype)).backward()


def trained_with_masters(
    dtype: torch.dtype, name: str = "adamw", data: Any = None
) -> tuple[nn.Module, list[torch.Tensor]]:
    """The loop that one writes by hand: gradients widened, a step in float32, values rounded."""
    model = half(dtype)
    masters = [item.detach().float() for item in model.parameters()]
    optimizer = OPTIMIZERS[name](masters)
    for batch in batches() if data is None else data:
        model.zero_grad()
        backward(model, batch)
        for master, item in zip(masters, model.parameters(), strict=True):
            assert item.grad is not None
            master.grad = item.grad.float()
        optimizer.step()
        with torch.no_grad():
            for master, item in zip(masters, model.parameters(), strict=True):
                item.copy_(master)
    return model, masters


def served(
    run: elasticps.Run, dtype: torch.dtype = torch.bfloat16, name: str = "adamw", **more: Any
) -> tuple[nn.Module, Any]:
    model = half(dtype)
    return model, run.optimizer(model, name, lr=LR, **more)


def steps(run: elasticps.Run, model: nn.Module, optimizer: Any, data: Any = None) -> nn.Module:
    for batch in run.data(dataset(), batch_size=BATCH) if data is None else data:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    return model


@pytest.mark.parametrize(
    ("dtype", "name"),
    [*((torch.bfloat16, name) for name in OPTIMIZERS), (torch.float16, "sgd")],
)
async def test_it_equals_a_loop_with_local_masters_and_not_one_without(
    dtype: torch.dtype, name: str
) -> None:
    async with Rig() as rig:
        model = await as_worker(rig, lambda run: steps(run, *served(run, dtype, name)))
    assert_equal(model, trained_with_masters(dtype, name)[0])
    without = half(dtype)
    optimizer = OPTIMIZERS[name](without.parameters())
    for batch in batches():
        optimizer.zero_grad()
        backward(without, batch)
        optimizer.step()
    with pytest.raises(AssertionError):
        assert_equal(model, without)


async def test_without_masters_it_equals_the_local_optimizer_in_half_precision() -> None:
    async with Rig() as rig:
        model = await as_worker(rig, lambda run: steps(run, *served(run, master_weights=False)))
    without = half()
    optimizer = OPTIMIZERS["adamw"](without.parameters())
    for batch in batches():
        optimizer.zero_grad()
        backward(without, batch)
        optimizer.step()
    assert_equal(model, without)


async def test_the_copies_survive_a_killed_server_and_a_move_to_the_bit() -> None:
    at_half, killed = threading.Event(), threading.Event()

    def script(run: elasticps.Run) -> nn.Module:
        model, optimizer = served(run)
        for step, batch in enumerate(run.data(dataset(), batch_size=BATCH)):
            if step == 4:
                at_half.set()
                killed.wait(PATIENCE_S)
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        return model

    async with Rig(servers=2, replicas=2) as rig:
        training = asyncio.create_task(as_worker(rig, script))
        await asyncio.to_thread(at_half.wait, PATIENCE_S)
        await rig.kill_server(rig.entries[BlockId(1)].primary)
        await rig.start_server()
        await eventually(lambda: all(len(each.holders) == 2 for each in rig.entries.values()))
        killed.set()
        model = await training
    assert_equal(model, trained_with_masters(torch.bfloat16)[0])


async def test_workers_gradients_are_averaged_in_float32() -> None:
    def script(run: elasticps.Run) -> nn.Module:
        return steps(run, *served(run, name="sgd"))

    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, script)
    assert_equal(one, other)
    wanted, _ = trained_with_masters(torch.bfloat16, "sgd")
    for mine, its in zip(one.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=0.01, atol=1e-3)


async def test_a_resumed_job_has_the_copies_to_the_bit_and_the_export_the_models_dtype(
    tmp_path: Path,
) -> None:
    def script(run: elasticps.Run, most: int) -> nn.Module:
        model, optimizer = served(run)
        for batch in run.data(dataset(), batch_size=BATCH):
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            if run.round == most:
                break
        return model

    saved = {"checkpoint_dir": str(tmp_path), "checkpoint_every": 4}
    async with Rig(**saved) as rig:
        await as_worker(rig, lambda run: script(run, 4))
    out = tmp_path / "weights.safetensors"
    export(newest(tmp_path), out)
    async with Rig(resume=str(tmp_path)) as rig:
        model = await as_worker(rig, lambda run: script(run, 0))
    whole = list(batches())
    assert_equal(model, trained_with_masters(torch.bfloat16, data=whole)[0])
    wanted, _ = trained_with_masters(torch.bfloat16, data=whole[:4])
    exported = load_file(out)
    assert {name: item.dtype for name, item in exported.items()} == dict.fromkeys(
        wanted.state_dict(), torch.bfloat16
    )
    wanted.load_state_dict(exported)
    assert_equal(wanted, trained_with_masters(torch.bfloat16, data=whole[:4])[0])


async def test_a_state_dict_carries_the_copies_into_another_job() -> None:
    def first(run: elasticps.Run) -> tuple[Any, Any]:
        model, optimizer = served(run)
        steps(run, model, optimizer, list(batches())[:4])
        return model.state_dict(), optimizer.state_dict()

    def second(run: elasticps.Run) -> nn.Module:
        model, optimizer = served(run)
        model.load_state_dict(values)
        optimizer.load_state_dict(state)
        return steps(run, model, optimizer, list(batches())[4:])

    async with Rig() as rig:
        values, state = await as_worker(rig, first)
    async with Rig() as rig:
        model = await as_worker(rig, second)
    assert_equal(model, trained_with_masters(torch.bfloat16)[0])


async def test_a_copy_of_values_that_the_script_has_replaced_is_not_taken() -> None:
    def first(run: elasticps.Run) -> Any:
        model, optimizer = served(run)
        steps(run, model, optimizer, list(batches())[:4])
        return optimizer.state_dict()

    def second(run: elasticps.Run) -> nn.Module:
        model, optimizer = served(run)
        optimizer.load_state_dict(state)
        return model

    async with Rig() as rig:
        state = await as_worker(rig, first)
    async with Rig() as rig:
        assert_equal(await as_worker(rig, second), half())
