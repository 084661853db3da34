"""The period is the paper's, and an exchange makes the average of the workers' models."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import torch
from elasticps_qsr import QuadraticSynchronization

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.testing.rig import Rig
from elasticps.testing.scripts import as_worker, network, samples, step

DATA = samples(64)


@pytest.mark.parametrize(
    ("learning_rate", "steps"),
    [(0.1, 4), (0.01, 4), (0.005, 16), (0.002, 64), (1e-9, 64), (0.0, 4)],
)
def test_period_is_the_papers(learning_rate: float, steps: int) -> None:
    assert QuadraticSynchronization(h=4, alpha=0.02, max_h=64).period(learning_rate) == steps


def test_period_is_the_base_while_warming_up() -> None:
    assert QuadraticSynchronization(h=4, alpha=0.02, max_h=64, warmup=1).period(0.002) == 4


@pytest.mark.parametrize("options", [{"h": 0}, {"max_h": 3}, {"alpha": -1.0}, {"warmup": -1}])
def test_an_option_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        QuadraticSynchronization(**options)


def alone(seed: int, steps: int) -> list[torch.Tensor]:
    """What so many local steps of one worker come to."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for number in range(steps):
        step(model, optimizer, batch(seed, number))
    return [item.detach() for item in model.parameters()]


def batch(seed: int, number: int) -> Any:
    random = torch.Generator().manual_seed(seed * 1000 + number)
    return DATA[torch.randperm(64, generator=random)[:8]]


def test_two_workers_average_what_each_has_come_to() -> None:
    def script(seed: int) -> Any:
        def train(run: elasticps.Run) -> tuple[list[torch.Tensor], int]:
            model = network()
            optimizer = run.optimizer(model, "sgd", lr=0.05, momentum=0.9)
            for number in range(4):
                step(model, optimizer, batch(seed, number))
            return [item.detach().clone() for item in model.parameters()], run.round

        return train

    async def job() -> Any:
        async with Rig(start_workers=2, strategy="qsr:h=4") as rig:
            return await asyncio.gather(*(as_worker(rig, f"w{n}", script(n)) for n in (1, 2)))

    (one, rounds), (other, _) = asyncio.run(job())
    assert rounds == 1
    for mine, its, first, second in zip(one, other, alone(1, 4), alone(2, 4), strict=True):
        assert torch.equal(mine, its)
        torch.testing.assert_close(mine, (first + second) / 2, atol=1e-6, rtol=1e-5)


def test_a_job_without_rounds_is_refused() -> None:
    async def job() -> Any:
        async with Rig(strategy="qsr", consistency=Consistency.ASYNC) as rig:
            return await as_worker(rig, "w1", lambda run: run.optimizer(network(), "sgd", lr=0.1))

    with pytest.raises(elasticps.UsageError) as caught:
        asyncio.run(job())
    assert caught.value.field == "consistency"
