"""What a part of a job by name may be, and what a script sees of its parts."""

from __future__ import annotations

import contextlib
import gc
import threading
from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.api.plugins import STRATEGIES
from elasticps.core.consistency import Consistency
from elasticps.errors import PluginError, UsageError
from elasticps.strategies.fiber import FIBERS
from elasticps.testing.rig import Rig
from tests.support.distributions import Install, install
from tests.support.parts import DENSE_AND_REST, trained
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

__all__ = ["install"]

THIRD_PARTY = """
from elasticps import ServedOptimizer, Strategy

class Signs(Strategy):
    '''Signs of gradients, their mean; its worker has its part's parameters alone.'''
    seen = set()
    def __init__(self, scale: float = 1.0):
        self.scale = scale
    def served_optimizer(self, chosen):
        return ServedOptimizer(name="sgd", options={"lr": 0.001})
    def step(self, worker):
        self.seen.update(worker.parameters)
        signs = {name: item.grad.sign() * self.scale for name, item in worker.parameters.items()}
        worker.exchange(signs, weight=1.0)

class Early(Strategy):
    steps_per_round = 4
    def step(self, worker):
        worker.exchange()

class Fails(Strategy):
    def step(self, worker):
        1 / 0

class Twice(Strategy):
    def step(self, worker):
        worker.exchange()
        worker.exchange()

class Stranger(Strategy):
    def step(self, worker):
        worker.exchange({"2.bias": worker.parameters["0.bias"]})
"""


@pytest.fixture
def acme(install: Install) -> None:
    names = {name.lower(): f"acme:{name}" for name in ("Signs", "Early", "Fails", "Twice")}
    install("acme", "acme", THIRD_PARTY, {STRATEGIES: {**names, "stranger": "acme:Stranger"}})


@pytest.mark.usefixtures("acme")
async def test_a_third_partys_strategy_is_a_part_as_any() -> None:
    """Beside all-reduce, whose parameters are stepped by the script's optimizer in the workers."""
    async with Rig(start_workers=2, strategy="0.*=all-reduce; *=signs:scale=2") as rig:
        models = await as_workers(rig, 2, trained("sgd", epochs=2))
    import acme  # type: ignore[import-not-found]

    assert acme.Signs.seen == {"2.weight", "2.bias"}
    assert_equal(models[0], models[1])
    (_, _, _, bias), start = models[0].parameters(), list(network().parameters())[3]
    steps = (bias.detach() - start.detach()) / 0.002 * 4  # the mean of two workers' signs, halves
    assert steps.abs().item() == pytest.approx(round(steps.abs().item()), abs=1e-3)


@pytest.mark.usefixtures("acme")
@pytest.mark.parametrize(
    ("strategy", "error", "text"),
    [
        ("0.*=data-parallel", UsageError, r"parameter 2.weight has no strategy.*limit: 0"),
        ("x=all-reduce; *=data-parallel", UsageError, "no parameter is left for the pattern x "),
        ("*=data-parallel; 0.*=all-reduce", UsageError, "no parameter is left for the pattern 0"),
        ("0.*=early; *=data-parallel", UsageError, "3 steps before its samples are used up"),
        ("0.*=twice; *=data-parallel", UsageError, "a second round in one step"),
        (
            "0.*=stranger; *=data-parallel",
            UsageError,
            "no parameter of this part is named '2.bias'",
        ),
        ("0.*=fails; *=data-parallel", PluginError, r"strategy fails: step\(\) failed: Zero"),
        ("0.*=local-sgd:h=x; *=data-parallel", PluginError, "local-sgd"),
    ],
)
async def test_what_cannot_be_is_refused_by_name(strategy: str, error: Any, text: str) -> None:
    async with Rig(strategy=strategy) as rig:
        with pytest.raises(error, match=text):
            await as_worker(rig, trained("sgd", epochs=1))


@pytest.mark.parametrize(
    ("strategy", "job", "field"),
    [
        (DENSE_AND_REST, {"consistency": Consistency.ASYNC}, "consistency"),
        (DENSE_AND_REST, {"backup_workers": 1}, "consistency"),
        ("0.*=local-sgd:h=4; *=data-parallel", {"backup_workers": 1}, "strategy"),
    ],
)
async def test_a_job_that_a_part_cannot_serve_is_refused(
    strategy: str, job: dict[str, Any], field: str
) -> None:
    async with Rig(strategy=strategy, **job) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, trained("sgd", epochs=1))
    assert caught.value.field == field


async def test_schedules_act_on_both_parts() -> None:
    """On the servers for the one, in the workers for the other; and on groups that are cut."""

    def steps(model: nn.Module, optimizer: Any, data: Any) -> nn.Module:
        schedule = optim.lr_scheduler.StepLR(optimizer, 3, gamma=0.5)
        for batch in data:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            schedule.step()
        return model

    def groups(model: nn.Module) -> list[dict[str, Any]]:
        weights = [item for item in model.parameters() if item.dim() > 1]
        return [
            {"params": weights, "weight_decay": 0.1},
            {"params": [item for item in model.parameters() if item.dim() == 1], "lr": 0.002},
        ]

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "sgd", groups=groups(model), lr=0.01, momentum=0.9)
        return steps(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=2))

    local = network()
    steps(local, optim.SGD(groups(local), lr=0.01, momentum=0.9), batches(epochs=2))
    async with Rig(start_workers=2, strategy=DENSE_AND_REST) as rig:
        models = await as_workers(rig, 2, script)
    for model in models:
        assert_equal(model, local, exactly=False)


async def test_the_optimizers_state_is_both_parts_and_loads_again() -> None:
    def script(run: elasticps.Run, state: Any = None) -> Any:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        if state is not None:
            model.load_state_dict(state[0])
            optimizer.load_state_dict(state[1])
        train(model, optimizer, run.data(dataset(), batch_size=BATCH, epochs=1))
        return model, (model.state_dict(), optimizer.state_dict())

    async with Rig(strategy=DENSE_AND_REST) as rig:
        model, state = await as_worker(rig, script)
    local = network()
    optimizer = optim.AdamW(local.parameters(), lr=0.01)
    train(local, optimizer, batches())
    wanted = optimizer.state_dict()["state"]
    assert set(state[1]["state"]) == set(wanted)
    for index, row in wanted.items():
        for key, item in row.items():
            torch.testing.assert_close(state[1]["state"][index][key], item, rtol=0, atol=1e-5)
    assert_equal(model, local, exactly=False)
    async with Rig(strategy=DENSE_AND_REST) as rig:
        again, _ = await as_worker(rig, lambda run: script(run, state))
    train(local, optimizer, batches())
    assert_equal(again, local, exactly=False)


async def test_no_threads_are_left_of_a_run() -> None:
    """Of one that ends in order, nor of one that a part has failed in the middle of a step."""
    for strategy in (DENSE_AND_REST, "0.*=data-parallel; *=local-sgd:h=4,overlap=1"):
        async with Rig(strategy=strategy) as rig:
            with contextlib.suppress(UsageError):
                await as_worker(rig, trained("sgd", epochs=1))

    def left() -> list[str]:
        gc.collect()
        return [each.name for each in threading.enumerate() if each.name.startswith(FIBERS)]

    wait_until(lambda: not left())


async def test_a_checkpoint_waits_until_every_part_is_published() -> None:
    """Its rounds push for the one part; the other has its values in the workers meanwhile."""
    published: dict[int, bool] = {}

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH, epochs=2):
            backward(model, batch)
            optimizer.step()
            published[run.round] = run._member.is_published

    async with Rig(strategy=DENSE_AND_REST) as rig:
        await as_worker(rig, script)
    assert [round_ for round_, is_whole in published.items() if is_whole] == [5, 10, 15, 16]
