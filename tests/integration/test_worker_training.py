"""A script's training over real servers: as its local run, and as torch's own optimizers behave."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.core.audit import Verdict
from elasticps.core.consistency import Consistency
from elasticps.testing.rig import Rig
from tests.support.processes import wait_until
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    loss_of,
    network,
    train,
)
from tests.support.wire import PATIENCE_S

LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adamw": optim.AdamW, "adafactor": optim.Adafactor}


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", LOCAL)
async def test_a_script_comes_to_what_its_local_run_comes_to(name: str, count: int) -> None:
    options: dict[str, Any] = {"lr": 0.01, "weight_decay": 0.01}

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, name, **options)
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=2))
        return model

    async with Rig(start_workers=count, audit=True) as rig:
        models = await as_workers(rig, count, script)
        blocks = len(rig.entries) - 1
    local = network()
    train(local, LOCAL[name](local.parameters(), **options), batches(epochs=2))
    for model in models:
        assert_equal(model, local, exactly=count == 1)
        assert_equal(model, models[0])
    rounds = len(list(batches(epochs=2)))
    verdicts = await rig.verdicts(count)
    assert verdicts == [Verdict(blocks * rounds)] * count


async def test_a_last_batch_of_fewer_samples_than_workers_is_trained_as_well() -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, int]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        train(model, optimizer, run.data(dataset(9), batch_size=4, epochs=3))
        return model, run.round

    async with Rig(start_workers=3) as rig:
        results = await as_workers(rig, 3, script)
    local = network()
    sgd = optim.SGD(local.parameters(), lr=0.01)
    train(local, sgd, batches(epochs=3, size=9, batch_size=4))
    for model, rounds in results:
        assert_equal(model, local, exactly=False)
        assert rounds == 9


async def test_the_first_worker_gives_the_values_and_the_others_take_them() -> None:
    seeds = iter(range(3))

    def script(run: elasticps.Run) -> nn.Module:
        model = network(seed=next(seeds))
        run.optimizer(model, "sgd", lr=0.01)
        return model

    async with Rig(start_workers=3) as rig:
        models = await as_workers(rig, 3, script)
    for model in models[1:]:
        assert_equal(model, models[0])
    given = [network(seed).state_dict()["0.weight"] for seed in range(3)]
    assert any(torch.equal(models[0].state_dict()["0.weight"], item) for item in given)


async def test_every_sample_is_used_once_an_epoch_while_workers_come_and_go() -> None:
    used: Counter[int] = Counter()
    worlds: set[int] = set()
    lock = threading.Lock()
    second_wanted, second_has_trained = threading.Event(), threading.Event()

    def script(run: elasticps.Run, uid: str) -> None:
        model = nn.Linear(1, 1)
        optimizer = run.optimizer(model, "sgd", lr=0.0)
        samples = TensorDataset(torch.arange(100.0).view(-1, 1))
        for number, (batch,) in enumerate(run.data(samples, batch_size=7, epochs=2)):
            if number == 3 and uid == "w1":
                second_wanted.set()
                wait_until(lambda: rig.ledger.joining)
            if number == 3 and uid == "w2":
                second_has_trained.set()
                wait_until(lambda: run._agent.retiring)
            model(batch).sum().backward()
            with lock:
                worlds.add(run.world)
                used.update(int(item) for item in batch.view(-1))
            optimizer.step()

    async with Rig() as rig:
        first = asyncio.create_task(as_worker(rig, lambda run: script(run, "w1"), "w1"))
        await asyncio.to_thread(second_wanted.wait, PATIENCE_S)
        second = asyncio.create_task(as_worker(rig, lambda run: script(run, "w2"), "w2"))
        await asyncio.to_thread(second_has_trained.wait, PATIENCE_S)
        rig.retire("w2")
        assert isinstance(await second, elasticps.WorkerRetired)
        await first
    assert used == Counter(dict.fromkeys(range(100), 2))
    assert worlds == {1, 2}


MODES: dict[str, dict[str, Any]] = {
    "backup workers": {"backup_workers": 1},
    "bounded": {"consistency": Consistency.BOUNDED, "staleness": 2},
    "async": {"consistency": Consistency.ASYNC},
}


@pytest.mark.parametrize("mode", MODES)
async def test_a_script_need_not_know_how_its_job_is_kept_consistent(mode: str) -> None:
    slow = iter([0.0, 0.0, 0.02])

    def script(run: elasticps.Run) -> nn.Module:
        pause_s = next(slow)
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.02)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=3):
            optimizer.zero_grad()
            backward(model, batch)
            time.sleep(pause_s)
            optimizer.step()
        return model

    async with Rig(start_workers=3, audit=True, **MODES[mode]) as rig:
        models = await as_workers(rig, 3, script)
        verdicts = await rig.verdicts(3)
    for verdict in verdicts:
        assert (verdict.lost, verdict.duplicated) == (0, 0)
    inputs, targets = dataset().tensors
    with torch.no_grad():
        losses = [float(loss_of(model(inputs), targets)) for model in [network(), *models]]
    assert all(loss < losses[0] / 2 for loss in losses[1:])


# -- as torch's optimizers behave ---------------------------------------------------------------


async def test_param_groups_keep_their_own_options() -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        first, _, last = model.children()
        return [
            {"params": first.parameters(), "lr": 0.05},
            {"params": list(last.parameters()), "weight_decay": 0.1},
        ]

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "adamw", groups=groups(model), lr=0.01)
        assert [group["lr"] for group in optimizer.param_groups] == [0.05, 0.01]
        train(model, optimizer, run.data(dataset(), batch_size=BATCH))
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    local = network()
    train(local, optim.AdamW(groups(local), lr=0.01), batches())
    assert_equal(model, local)


async def test_hooks_and_closures_run_as_on_the_local_optimizer() -> None:
    def hooked(model: nn.Module, optimizer: optim.Optimizer) -> tuple[list[str], float]:
        seen: list[str] = []
        optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
        optimizer.register_step_post_hook(lambda *_: seen.append("after"))
        batch = next(iter(batches()))

        def closure() -> Any:
            seen.append("closure")
            optimizer.zero_grad()
            return backward(model, batch)

        loss: Any = optimizer.step(closure)
        return seen, loss.item()

    def script(run: elasticps.Run) -> Any:
        model = network()
        return hooked(model, run.optimizer(model, "sgd", lr=0.01)), model

    async with Rig() as rig:
        result, model = await as_worker(rig, script)
    local = network()
    assert result == hooked(local, optim.SGD(local.parameters(), lr=0.01))
    assert result[0] == ["before", "closure", "after"]
    assert_equal(model, local)


@pytest.mark.parametrize("set_to_none", [True, False])
async def test_zeroed_gradients_are_not_the_same_as_no_gradients(*, set_to_none: bool) -> None:
    def idle(model: nn.Module, optimizer: optim.Optimizer) -> None:
        for number, batch in enumerate(batches()):
            optimizer.zero_grad(set_to_none=set_to_none)
            if number % 3 != 2:
                backward(model, batch)
            optimizer.step()

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        idle(model, run.optimizer(model, "sgd", lr=0.01, momentum=0.9, weight_decay=0.1))
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    local = network()
    sgd = optim.SGD(local.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    idle(local, sgd)
    assert_equal(model, local)


async def test_a_gradient_that_is_not_contiguous_is_pushed_as_it_is() -> None:
    def steps(model: nn.Linear, optimizer: optim.Optimizer) -> None:
        for number in range(3):
            random = torch.Generator().manual_seed(number)
            model.weight.grad = torch.randn(50, 60, generator=random).t()
            optimizer.step()

    def script(run: elasticps.Run) -> nn.Linear:
        model = nn.Linear(50, 60, bias=False)
        nn.init.ones_(model.weight)
        steps(model, run.optimizer(model, "sgd", lr=0.01, momentum=0.9))
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    local = nn.Linear(50, 60, bias=False)
    nn.init.ones_(local.weight)
    steps(local, optim.SGD(local.parameters(), lr=0.01, momentum=0.9))
    assert_equal(model, local)


# -- checkpoints --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOCAL)
async def test_a_saved_state_goes_on_in_another_job_as_if_nothing_had_happened(name: str) -> None:
    data = list(batches(epochs=2))

    def first(run: elasticps.Run) -> Any:
        model = network()
        optimizer = run.optimizer(model, name, lr=0.01)
        train(model, optimizer, data[:6])
        return copy.deepcopy((model.state_dict(), optimizer.state_dict()))

    def second(run: elasticps.Run) -> nn.Module:
        model = network(seed=9)
        optimizer = run.optimizer(model, name, lr=0.5)
        model.load_state_dict(saved[0])
        optimizer.load_state_dict(saved[1])
        train(model, optimizer, data[6:])
        return model

    async with Rig() as rig:
        saved = await as_worker(rig, first)
    async with Rig(start_workers=2) as rig:
        models = await as_workers(rig, 2, second)
    local = network()
    train(local, LOCAL[name](local.parameters(), lr=0.01), data)
    for model in models:
        assert_equal(model, models[0])
        assert_equal(model, local, exactly=False)


async def test_a_worker_that_joins_later_ignores_its_outdated_checkpoint() -> None:
    data = list(batches())
    second_wanted = threading.Event()

    def first(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        train(model, optimizer, data[:3])
        second_wanted.set()
        wait_until(lambda: rig.ledger.joining)
        train(model, optimizer, data[3:])
        return model

    def second(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        fresh = network()
        model.load_state_dict(fresh.state_dict())
        local = optim.AdamW(fresh.parameters(), lr=0.01)
        train(fresh, local, data[:1])
        optimizer.load_state_dict(local.state_dict())
        train(model, optimizer, data[run.round :])
        return model

    async with Rig() as rig:
        one = asyncio.create_task(as_worker(rig, first, "w1"))
        await asyncio.to_thread(second_wanted.wait, PATIENCE_S)
        other = await as_worker(rig, second, "w2")
        assert_equal(await one, other)
    local = network()
    train(local, optim.AdamW(local.parameters(), lr=0.01), data)
    assert_equal(other, local, exactly=False)


async def test_a_loader_reads_in_order_and_collates_as_it_is_told() -> None:
    def script(run: elasticps.Run) -> list[list[int]]:
        optimizer = run.optimizer(network(), "sgd", lr=0.1)
        seen = []
        data = run.data(range(5), batch_size=2, epochs=2, shuffle=False, collate=list)
        for batch in data:
            seen.append([data.epoch, *batch])
            optimizer.step()
        return seen

    async with Rig() as rig:
        seen = await as_worker(rig, script)
    assert seen == [[0, 0, 1], [0, 2, 3], [0, 4], [1, 0, 1], [1, 2, 3], [1, 4]]
