"""Strategies whose workers exchange among themselves: over real sockets, in threads of a test."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections import Counter
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.errors import PluginError, UsageError
from elasticps.strategies.topology import graph, metropolis
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
    network,
    train,
)

LOCAL: dict[str, Any] = {"sgd": optim.SGD, "adamw": optim.AdamW, "adafactor": optim.Adafactor}
OPTIONS: dict[str, dict[str, Any]] = {
    "sgd": {"lr": 0.01, "momentum": 0.9},
    "adamw": {"lr": 0.01},
    "adafactor": {"lr": 0.01},
}


def trained(rig: Rig, name: str, epochs: int) -> Any:
    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, name, **OPTIONS[name])
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=epochs))
        return model

    return script


def alone(name: str, epochs: int) -> nn.Module:
    model = network()
    train(model, LOCAL[name](model.parameters(), **OPTIONS[name]), batches(epochs=epochs))
    return model


# -- all-reduce ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", LOCAL)
async def test_all_reduce_equals_the_local_run_and_so_do_the_shards(name: str, count: int) -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, dict[str, torch.Tensor]]:
        return trained(rig, name, epochs=2)(run), run.state_dict()["model"]

    async with Rig(start_workers=count, strategy="all-reduce:publish_every=5") as rig:
        told = await as_workers(rig, count, script)
    shards = network(seed=9)
    for model, state in told:
        assert_equal(model, alone(name, epochs=2), exactly=False)
        assert_equal(model, told[0][0])
        shards.load_state_dict(state)
        assert_equal(shards, model, exactly=False)


async def test_a_round_of_fewer_samples_than_workers_is_everybodys_round() -> None:
    def script(run: elasticps.Run) -> tuple[nn.Module, int]:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        train(model, optimizer, run.data(dataset(9), batch_size=4, epochs=3))
        return model, run.round

    async with Rig(start_workers=3, strategy="all-reduce:publish_every=2") as rig:
        results = await as_workers(rig, 3, script)
    local = network()
    train(local, optim.AdamW(local.parameters(), lr=0.01), batches(3, size=9, batch_size=4))
    for model, rounds in results:
        assert_equal(model, results[0][0])
        assert_equal(model, local, exactly=False)
        assert rounds == 9


async def test_no_server_takes_part_in_a_step_that_is_not_published() -> None:
    def script(run: elasticps.Run) -> int:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        pushed = 0
        for batch in run.data(dataset(), batch_size=BATCH, epochs=1):
            backward(model, batch)
            optimizer.step()
            if not run._member.ends_data:
                pushed = (
                    run._membership.exchange.encoder.pushed_bytes
                    if run._membership.is_entered
                    else -1
                )
        return pushed

    for strategy in ("all-reduce", "gossip"):
        async with Rig(start_workers=2, strategy=f"{strategy}:publish_every=0") as rig:
            assert await as_workers(rig, 2, script) == [0, 0]


@pytest.mark.parametrize("strategy", ["all-reduce", "gossip:topology=complete"])
async def test_who_joins_goes_on_from_what_the_others_have_and_every_sample_is_read_once(
    strategy: str,
) -> None:
    """The joiner gets the optimizer's momentum as well: the run equals one without the join."""
    used: Counter[int] = Counter()
    numbered = TensorDataset(torch.arange(60), *dataset().tensors)

    def script(run: elasticps.Run, uid: str) -> tuple[nn.Module, list[int]]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01, momentum=0.9)
        worlds = []
        for step, (numbers, *batch) in enumerate(run.data(numbered, batch_size=8, epochs=6)):
            if uid == "w0" and step == 12:
                joining.set()
                wait_until(lambda: rig.ledger.joining)
            optimizer.zero_grad()
            backward(model, batch)
            used.update(int(number) for number in numbers)
            worlds.append(run.world)
            optimizer.step()
        return model, worlds

    joining = threading.Event()
    async with Rig(start_workers=2, strategy=f"{strategy}") as rig:
        first = [
            asyncio.create_task(as_worker(rig, lambda run, n=n: script(run, f"w{n}"), f"w{n}"))  # type: ignore[misc]
            for n in range(2)
        ]
        await asyncio.to_thread(joining.wait)
        third = asyncio.create_task(as_worker(rig, lambda run: script(run, "w2"), "w2"))
        results = [await task for task in (*first, third)]
    assert used == Counter(dict.fromkeys(range(60), 6))
    models = [model for model, _ in results]
    for model in models[1:]:
        assert_equal(model, models[0])
    assert results[0][1][0] == 2
    assert results[0][1][-1] == 3
    if strategy == "all-reduce":
        assert_equal(models[0], alone("sgd", epochs=6), exactly=False)


# -- gossip -------------------------------------------------------------------------------------


def digits() -> tuple[TensorDataset, TensorDataset]:
    from sklearn.datasets import load_digits  # for seconds, also where only the others are run

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(7))
    pixels = torch.tensor(images / 16.0, dtype=torch.float32)[order]
    targets = torch.tensor(labels)[order]
    return TensorDataset(pixels[:1437], targets[:1437]), TensorDataset(
        pixels[1437:], targets[1437:]
    )


async def accuracy(strategy: str, workers: int) -> float:
    train_set, held_out = digits()

    def script(run: elasticps.Run) -> float:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        optimizer = run.optimizer(model, "sgd", lr=0.1, momentum=0.9)
        for pixels, targets in run.data(train_set, batch_size=96, epochs=20):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        pixels, targets = held_out.tensors
        return float((model(pixels).argmax(1) == targets).float().mean())

    async with Rig(start_workers=workers, strategy=strategy) as rig:
        results = await as_workers(rig, workers, script)
    assert len(set(results)) == 1  # all end with the same model
    return float(results[0])


async def test_gossip_comes_within_a_point_of_synchronous_training() -> None:
    """After 10 epochs, not 20, even synchronous runs (sums in another order) differ by a point."""
    sync = await accuracy("data-parallel", 3)
    assert sync > 0.97
    assert await accuracy("gossip:topology=ring", 3) > sync - 0.01


@pytest.mark.long
async def test_all_reduce_and_gossip_of_five_come_as_near_as_that() -> None:
    sync = await accuracy("data-parallel", 3)
    assert await accuracy("all-reduce", 3) == pytest.approx(sync, abs=0.01)
    assert await accuracy("gossip:topology=ring,publish_every=0", 5) > sync - 0.01


async def test_gossips_mixing_is_that_of_its_weights() -> None:
    """With nothing to learn (a gradient of zero) the workers' values fall together as W says."""
    values: dict[tuple[int, int], torch.Tensor] = {}

    def script(run: elasticps.Run) -> None:
        parameter = nn.Parameter(torch.zeros(100))
        model = nn.Module()
        model.register_parameter("p", parameter)
        optimizer = run.optimizer(model, "sgd", lr=0.0)
        with torch.no_grad():
            parameter.copy_(torch.randn(100, generator=torch.Generator().manual_seed(run.rank)))
        for number in itertools.count():
            values[number, run.rank] = parameter.detach().clone()
            if number == 5:
                break
            parameter.grad = torch.zeros(100)
            optimizer.step()

    async with Rig(start_workers=4, strategy="gossip:topology=ring") as rig:
        await as_workers(rig, 4, script)
    weights = torch.tensor(metropolis(graph("ring", 4)), dtype=torch.float32)
    for number in range(5):
        before = torch.stack([values[number, rank] for rank in range(4)])
        after = torch.stack([values[number + 1, rank] for rank in range(4)])
        torch.testing.assert_close(after, weights @ before, rtol=0, atol=1e-6)
        torch.testing.assert_close(after.mean(0), before.mean(0), rtol=0, atol=1e-6)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "job", "field"),
    [
        ("gossip:topology=star", {}, "topology"),
        ("gossip:publish_every=-1", {}, "publish_every"),
        (
            "all-reduce",
            {"consistency": Consistency.ASYNC},
            "consistency",
        ),
        ("gossip", {"backup_workers": 1}, "consistency"),
        ("all-reduce", {"codec": "top-k:ratio=0.01"}, "codec"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(
    strategy: str, job: dict[str, Any], field: str
) -> None:
    def script(run: elasticps.Run) -> object:
        try:
            run.optimizer(network(), "sgd", lr=0.01)
        except (UsageError, PluginError) as error:
            return error
        return None

    async with Rig(start_workers=1, strategy=strategy, **job) as rig:
        error = await as_worker(rig, script)
    assert isinstance(error, UsageError)
    assert field in str(error)
