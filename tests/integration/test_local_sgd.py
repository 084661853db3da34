"""Local SGD in every shape, beside runs that know nothing of elasticps."""

from __future__ import annotations

import asyncio
import math
import sys
import threading
import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.utils.data import TensorDataset

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.strategies.local_sgd import LocalSGD
from elasticps.testing.rig import Rig
from tests.support.processes import wait_until
from tests.support.quadratic import Quadratic, centres
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

LR = 0.1


def trained(run: elasticps.Run, epochs: int = 2) -> nn.Module:
    model = network()
    optimizer = run.optimizer(model, "sgd", lr=0.01)
    train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=epochs))
    return model


@pytest.mark.parametrize("count", [1, 2, 3])
async def test_a_period_of_one_step_is_synchronous_data_parallelism(count: int) -> None:
    async with Rig(start_workers=count, strategy="local-sgd:h=1,outer=sgd", audit=True) as rig:
        models = await as_workers(rig, count, trained)
        verdicts = await rig.verdicts(count)
    local = network()
    train(local, optim.SGD(local.parameters(), lr=0.01), batches(epochs=2))
    for model in models:
        assert_equal(model, local, exactly=False)
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


async def test_a_schedule_drives_the_optimizer_of_each_worker() -> None:
    def scheduled(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> None:
        scheduler = optim.lr_scheduler.ExponentialLR(optimizer, 0.8)
        for batch in data:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            scheduler.step()

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.02, momentum=0.9)
        scheduled(model, optimizer, run.data(dataset(), batch_size=BATCH))
        return model

    async with Rig(strategy="local-sgd:h=3") as rig:
        model = await as_worker(rig, script)
    local = network()
    scheduled(local, optim.SGD(local.parameters(), lr=0.02, momentum=0.9), batches())
    assert_equal(model, local, exactly=False)


async def test_the_state_of_a_workers_optimizer_is_what_its_state_dict_has() -> None:
    def script(run: elasticps.Run) -> Any:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01, momentum=0.9)
        train(model, optimizer, list(batches())[:3])
        return optimizer.state_dict()

    async with Rig(strategy="local-sgd:h=3") as rig:
        saved = await as_worker(rig, script)
    local = network()
    sgd = optim.SGD(local.parameters(), lr=0.01, momentum=0.9)
    train(local, sgd, list(batches())[:3])
    expected = sgd.state_dict()["state"]
    for key, row in saved["state"].items():
        torch.testing.assert_close(row["momentum_buffer"], expected[key]["momentum_buffer"])


# -- beside independent runs --------------------------------------------------------------------

OUTERS: dict[str, tuple[float, float, bool]] = {
    "average": (1.0, 0.0, False),
    "sgd,outer_lr=0.5,outer_momentum=0.5": (0.5, 0.5, False),
    "nesterov": (0.7, 0.9, True),
}


@pytest.mark.parametrize("outer", OUTERS)
async def test_rounds_are_those_of_the_papers_on_a_quadratic(outer: str) -> None:
    """Douillard et al. 2023, algorithm 1, in numpy; FedAvg is the case of rate 1."""
    h, rounds, count = 4, 5, 3
    lr, momentum, nesterov = OUTERS[outer]
    async with Rig(start_workers=count, strategy=f"local-sgd:h={h},outer={outer}") as rig:
        results = await as_workers(rig, count, Quadratic(steps=h * rounds, lr=LR).trained)
    theta, velocity = np.zeros(5), np.zeros(5)
    for number in range(rounds):
        progress = []
        for centre in centres(count):
            mine = theta.copy()
            for _ in range(h):
                mine -= LR * (mine - centre)
            progress.append(theta - mine)
        delta = np.mean(progress, axis=0)
        velocity = delta if number == 0 else momentum * velocity + delta
        theta = theta - lr * (delta + momentum * velocity if nesterov else velocity)
    for result in results:
        np.testing.assert_allclose(result, theta, atol=1e-5)


@pytest.mark.parametrize("overlap", [0, 1, 2])
async def test_fragments_go_in_turn_and_are_merged_later(overlap: int) -> None:
    """Douillard et al. 2025, algorithm 2, in numpy: rate 1, half of the local value kept."""
    h, fragments, count, rounds = 6, 2, 2, 7
    span = h // fragments
    text = f"local-sgd:h={h},fragments={fragments},overlap={overlap},mix=0.5"
    steps = span * rounds + overlap
    script = Quadratic(steps=steps, lr=LR)
    async with Rig(start_workers=count, strategy=text) as rig:
        results = await as_workers(rig, count, script.trained)
    # The larger parameter is the first fragment, the smaller the second.
    parts = [slice(0, 3), slice(3, 5)]
    mine = [np.zeros(5) for _ in range(count)]
    sent: tuple[int, slice, Any] | None = None
    for step in range(1, steps + 1):
        for theta, centre in zip(mine, centres(count), strict=True):
            theta -= LR * (theta - centre)
        if sent is not None and step == sent[0] + overlap:
            for theta in mine:
                theta[sent[1]] = 0.5 * theta[sent[1]] + 0.5 * sent[2]
            sent = None
        if step % span == 0:
            part = parts[(step // span - 1) % fragments]
            merged = np.mean([theta[part] for theta in mine], axis=0)
            sent = step, part, merged
            if overlap == 0:
                for theta in mine:
                    theta[part] = merged
                sent = None
    for result, theta in zip(sorted(map(tuple, results)), sorted(map(tuple, mine)), strict=True):
        np.testing.assert_allclose(result, theta, atol=1e-5)


async def test_bytes_fall_by_the_steps_of_a_period(capsys: pytest.CaptureFixture[str]) -> None:
    h, steps = 8, 32

    async def pushed(strategy: str) -> tuple[int, int]:
        script = Quadratic(steps=steps, lr=LR)

        def counted(run: elasticps.Run) -> tuple[int, int]:
            script.trained(run)
            return (
                run._membership.exchange.encoder.pushed_bytes,
                run._membership.exchange.bytes_pulled,
            )

        async with Rig(strategy=strategy) as rig:
            found: tuple[int, int] = await as_worker(rig, counted)
            return found

    each_step, local = await pushed("data-parallel"), await pushed(f"local-sgd:h={h}")
    parts = await pushed(f"local-sgd:h={h},fragments=2,overlap=1")
    told = f"{steps} steps: pushed, pulled {each_step}; h={h}: {local}; in fragments: {parts}\n"
    with capsys.disabled():
        sys.stdout.write(f"\n{told}")
    assert each_step[0] == h * local[0]
    assert parts[0] <= local[0]


# -- samples ------------------------------------------------------------------------------------

SHAPES = ["h=1", "h=4", "h=5,outer=nesterov", "h=6,fragments=2", "h=6,fragments=2,overlap=2"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_every_sample_is_read_once_while_workers_come_and_go(shape: str) -> None:
    read: Counter[int] = Counter()
    lock = threading.Lock()
    second_wanted, second_has_trained = threading.Event(), threading.Event()

    def script(run: elasticps.Run, uid: str) -> list[float]:
        model = network(1 if uid == "w1" else 2)[0]
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        samples = TensorDataset(torch.arange(100.0).view(-1, 1))
        for number, (batch,) in enumerate(run.data(samples, batch_size=7, epochs=2)):
            if number == 3 and uid == "w1":
                second_wanted.set()
                wait_until(lambda: rig.ledger.joining)
            if number == 3 and uid == "w2":
                second_has_trained.set()
                wait_until(lambda: run._agent.retiring)
            optimizer.zero_grad()
            model(batch.expand(-1, 6) / 100).pow(2).mean().backward()
            with lock:
                read.update(int(item) for item in batch.view(-1))
            optimizer.step()
        return [float(item) for item in model.weight.detach().view(-1)[:20]]

    async with Rig(audit=True, strategy=f"local-sgd:{shape}") as rig:
        first = asyncio.create_task(as_worker(rig, lambda run: script(run, "w1"), "w1"))
        await asyncio.to_thread(second_wanted.wait, PATIENCE_S)
        second = asyncio.create_task(as_worker(rig, lambda run: script(run, "w2"), "w2"))
        await asyncio.to_thread(second_has_trained.wait, PATIENCE_S)
        rig.retire("w2")
        assert isinstance(await second, elasticps.WorkerRetired)
        await first
        verdicts = await rig.verdicts(2)
    assert read == Counter(dict.fromkeys(range(100), 2))
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


MODES: dict[str, dict[str, Any]] = {
    "sync": {},
    "bounded": {"consistency": Consistency.BOUNDED, "staleness": 1},
    "async": {"consistency": Consistency.ASYNC},
}


@pytest.mark.parametrize("shape", ["h=4", "h=4,fragments=2,overlap=1"])
@pytest.mark.parametrize("mode", MODES)
async def test_workers_learn_and_end_equal_in_rounds(mode: str, shape: str) -> None:
    slow = iter([0.0, 0.0, 0.01])

    def script(run: elasticps.Run) -> nn.Module:
        pause_s = next(slow)
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.02)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=4):
            optimizer.zero_grad()
            backward(model, batch)
            time.sleep(pause_s)
            optimizer.step()
        return model

    async with Rig(
        start_workers=3, audit=True, strategy=f"local-sgd:{shape}", **MODES[mode]
    ) as rig:
        models = await as_workers(rig, 3, script)
        verdicts = await rig.verdicts(3)
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)
    inputs, targets = dataset().tensors
    with torch.no_grad():
        losses = [float(loss_of(model(inputs), targets)) for model in [network(), *models]]
    assert all(loss < losses[0] / 2 for loss in losses[1:])
    if mode == "sync":
        for model in models[1:]:
            assert_equal(model, models[0])


async def test_a_slow_workers_period_is_read_again_by_others() -> None:
    """With backup workers: what the round went on without is undone in its worker."""
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

    async with Rig(start_workers=3, audit=True, strategy="local-sgd:h=2", backup_workers=1) as rig:
        await as_workers(rig, 3, script)
        verdicts = await rig.verdicts(3)
    assert all((verdict.lost, verdict.duplicated) == (0, 0) for verdict in verdicts)


# -- deaths -------------------------------------------------------------------------------------


async def test_a_death_within_a_period_costs_the_others_no_step_and_no_sample() -> None:
    read: dict[str, Counter[int]] = {"w1": Counter(), "w2": Counter()}
    dead = threading.Event()

    class Death(Exception):
        pass

    def script(run: elasticps.Run, uid: str) -> int:
        model = nn.Linear(1, 1)
        optimizer = run.optimizer(model, "sgd", lr=0.0)
        samples = TensorDataset(torch.arange(96.0).view(-1, 1))
        for number, (batch,) in enumerate(run.data(samples, batch_size=6)):
            if uid == "w2" and number == 5:  # one round of 4 is done, and a step of the next
                raise Death
            if uid == "w1" and number == 5:
                dead.wait(PATIENCE_S)
            model(batch).sum().backward()
            read[uid].update(int(item) for item in batch.view(-1))
            optimizer.step()
        return run.steps

    async with Rig(start_workers=2, strategy="local-sgd:h=4") as rig:
        first = asyncio.create_task(as_worker(rig, lambda run: script(run, "w1"), "w1"))
        with pytest.raises(Death):
            await as_worker(rig, lambda run: script(run, "w2"), "w2")
        dead.set()
        steps = await first
    carried = Counter(list(read["w2"])[:12])  # what the round that it took part in was made of
    assert read["w1"] + carried == Counter(dict.fromkeys(range(96), 1))
    assert steps == 4 + 4 + 10


def test_options_that_cannot_be_are_refused_before_anything_is_trained() -> None:
    for options, reason in [
        ({"h": 0}, "h=0"),
        ({"h": 4, "fragments": 3}, "multiple"),
        ({"h": 4, "fragments": 2, "overlap": 2}, "overlap=2"),
        ({"mix": 1.0}, "mix"),
        ({"outer": "adam"}, "average, sgd, nesterov"),
        ({"outer_lr": 0.5}, "outer=sgd"),
        ({"outer": "sgd", "outer_lr": math.nan}, "outer_lr=nan"),
        ({"outer": "sgd", "outer_lr": -1.0}, "outer_lr=-1"),
        ({"outer": "sgd", "outer_momentum": 1.0}, "outer_momentum=1"),
        ({"outer": "nesterov", "outer_momentum": 0.0}, "outer_momentum=0"),
    ]:
        with pytest.raises(ValueError, match=reason):
            LocalSGD(**options)  # type: ignore[arg-type]
