"""``run.state_dict()`` and ``run.load_state_dict()``: a job's whole state as plain torch has it."""

from __future__ import annotations

import asyncio
import copy
import threading
from io import BytesIO
from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.errors import UsageError
from elasticps.testing.rig import Rig
from tests.support.processes import wait_until
from tests.support.scripts import as_worker, as_workers, assert_equal, batches, train
from tests.support.wire import PATIENCE_S

DRAWING = threading.Lock()


def normed(seed: int = 0) -> nn.Module:
    """With buffers, a frozen parameter and a tied one."""
    with DRAWING:  # workers are threads here, which share torch's generator
        torch.manual_seed(seed)
        # A bias before a norm has no gradient but for rounding, of which Adam makes steps.
        first = nn.Linear(6, 200, bias=False)
        model = nn.Sequential(
            first, nn.BatchNorm1d(200), nn.Tanh(), nn.Linear(200, 6), nn.Linear(6, 1)
        )
    model[4].bias.requires_grad_(False)
    model[0].register_module("tied", model[3])
    return model


def through_a_file(state: Any) -> Any:
    file = BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, item in one.items():
        if isinstance(item, dict):
            assert_same(item, other[key])
        else:
            assert torch.equal(torch.as_tensor(item), torch.as_tensor(other[key])), key


async def test_a_saved_run_goes_on_in_one_process_of_plain_torch() -> None:
    data = list(batches(epochs=2))

    def script(run: elasticps.Run) -> Any:
        model = normed()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        train(model, optimizer, data[:6])
        state = run.state_dict()
        train(model, optimizer, data[6:])
        return through_a_file(state)

    async with Rig() as rig:
        saved = await as_worker(rig, script)
    assert saved["round"] == 6
    model, straight = normed(seed=9), normed()
    assert saved["model"].keys() == model.state_dict().keys()
    model.load_state_dict(saved["model"])
    optimizer = optim.AdamW([item for item in model.parameters() if item.requires_grad], lr=0.5)
    optimizer.load_state_dict(saved["optimizer"])
    train(model, optimizer, data[6:])
    wanted = [item for item in straight.parameters() if item.requires_grad]
    train(straight, optim.AdamW(wanted, lr=0.01), data)
    assert_equal(model, straight, exactly=False)
    torch.testing.assert_close(model[1].running_var, straight[1].running_var)


SERVED = ["data-parallel", "local-sgd:h=3", "all-reduce:publish_every=1"]


@pytest.mark.parametrize("strategy", SERVED)
async def test_a_saved_run_goes_on_in_another_job(strategy: str) -> None:
    data = list(batches(epochs=2))

    def first(run: elasticps.Run) -> Any:
        model = normed()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        train(model, optimizer, data[:6])
        state = run.state_dict()
        model_here = copy.deepcopy(model.state_dict())
        train(model, optimizer, data[6:])
        return state, model_here, model

    def second(run: elasticps.Run) -> nn.Module:
        model = normed()
        optimizer = run.optimizer(model, "adam", lr=0.5)
        run.load_state_dict(through_a_file(saved))
        train(model, optimizer, data[6:])
        return model

    async with Rig(strategy=strategy) as rig:
        saved, here, straight = await as_worker(rig, first)
    assert_same(saved["model"], here)
    async with Rig(strategy=strategy, start_workers=2) as rig:
        models = await as_workers(rig, 2, second)
    for model in models:
        assert_equal(model, models[0])
        assert_equal(model, straight, exactly=False)
        torch.testing.assert_close(model[1].running_mean, straight[1].running_mean)


async def test_a_model_alone_is_loaded_with_a_fresh_optimizer() -> None:
    data = list(batches())

    def script(run: elasticps.Run) -> nn.Module:
        model = normed()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        run.load_state_dict({"model": normed(seed=9).state_dict()})
        train(model, optimizer, data)
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    local = normed(seed=9)
    wanted = [item for item in local.parameters() if item.requires_grad]
    train(local, optim.Adam(wanted, lr=0.01), data)
    assert_equal(model, local, exactly=False)


@pytest.mark.parametrize("strategy", ["data-parallel", "local-sgd:h=4"])
async def test_nothing_is_loaded_once_a_worker_has_stepped(strategy: str) -> None:
    def script(run: elasticps.Run) -> None:
        model = normed()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        state = run.state_dict()
        train(model, optimizer, list(batches())[:5])
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(UsageError, match="has taken 5 steps") as error:
            run.load_state_dict(state)
        assert error.value.field == "run.load_state_dict"
        assert_same(model.state_dict(), before)
        if strategy != "data-parallel":
            with pytest.raises(UsageError, match="5 steps by itself"):
                optimizer.load_state_dict(state["optimizer"])

    async with Rig(strategy=strategy) as rig:
        await as_worker(rig, script)


async def test_a_worker_that_joins_later_keeps_the_jobs_state_and_not_what_it_loads() -> None:
    data, wanted = list(batches()), threading.Event()

    def first(run: elasticps.Run) -> nn.Module:
        model = normed()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        train(model, optimizer, data[:3])
        wanted.set()
        wait_until(lambda: rig.ledger.joining)
        train(model, optimizer, data[3:])
        return model

    def second(run: elasticps.Run) -> nn.Module:
        model = normed()
        optimizer = run.optimizer(model, "adam", lr=0.01)
        outdated = {**normed(seed=9).state_dict(), "4.bias": model[4].bias.clone()}
        run.load_state_dict({"model": outdated})
        train(model, optimizer, data[run.round :])
        return model

    async with Rig() as rig:
        one = asyncio.create_task(as_worker(rig, first, "w1"))
        await asyncio.to_thread(wanted.wait, PATIENCE_S)
        other = await as_worker(rig, second, "w2")
        assert_equal(await one, other)


async def test_a_state_that_the_shards_do_not_have_is_not_given() -> None:
    def script(run: elasticps.Run) -> None:
        model = normed()
        with pytest.raises(UsageError, match=r"run\.optimizer"):
            run.state_dict()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        with pytest.raises(UsageError, match="a state with weights"):
            run.load_state_dict({"weights": {}})
        train(model, optimizer, list(batches())[:2])
        with pytest.raises(UsageError, match="not all of round 2 yet"):
            run.state_dict()

    async with Rig(strategy="all-reduce:publish_every=50") as rig:
        await as_worker(rig, script)
