"""What torch users put around a training loop works around a served one, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn, optim
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import elasticps
from elasticps.errors import UsageError
from elasticps.testing.rig import Rig
from tests.support.scripts import (
    BATCH,
    as_worker,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
    train,
)

Loop = Callable[[nn.Module, optim.Optimizer, Any], nn.Module]


async def as_trained_locally(loop: Loop, make: Callable[[], nn.Module] = network) -> nn.Module:
    """``loop``'s model, which is the same with the servers' optimizer and with the local one."""

    def script(run: elasticps.Run) -> nn.Module:
        model = make()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        return loop(model, optimizer, run.data(dataset(), batch_size=BATCH))

    async with Rig() as rig:
        served: nn.Module = await as_worker(rig, script)
    model = make()
    trained = [item for item in model.parameters() if item.requires_grad]
    assert_equal(served, loop(model, optim.AdamW(trained, lr=0.01), batches()))
    return served


async def test_an_average_over_the_steps_is_that_of_a_local_run() -> None:
    def loop(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> nn.Module:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        for batch in data:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            average.update_parameters(model)
        return average

    await as_trained_locally(loop)


async def test_a_closure_is_evaluated_once_and_its_loss_returned() -> None:
    def loop(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> nn.Module:
        for batch in data:
            losses: list[torch.Tensor] = []

            def closure(batch: Any = batch, losses: list[torch.Tensor] = losses) -> torch.Tensor:
                optimizer.zero_grad()
                losses.append(backward(model, batch))
                return losses[-1]

            assert optimizer.step(closure) is losses[-1]
            assert len(losses) == 1
        return model

    await as_trained_locally(loop)


async def test_gradients_that_are_kept_add_up_and_zero_grad_may_leave_zeros() -> None:
    def loop(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> nn.Module:
        for step, batch in enumerate(data):
            backward(model, batch)
            optimizer.step()
            if step % 2:
                optimizer.zero_grad(set_to_none=False)
                assert all(
                    not item.grad.any() for item in model.parameters() if item.grad is not None
                )
        return model

    await as_trained_locally(loop)


class Tied(nn.Module):
    """One weight in two places, and a layer that is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = network()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        with torch.no_grad():
            self.first.weight.copy_(torch.eye(6))
            self.first.bias.zero_()
            self.second.bias.zero_()
        self.second.weight = self.first.weight
        self.inner[0].requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.inner(self.second(self.first(inputs).tanh()))
        return hidden


async def test_what_is_unfrozen_later_is_refused_by_name() -> None:
    def script(run: elasticps.Run) -> None:
        model = network()
        model[2].requires_grad_(requires_grad=False)
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for number, batch in enumerate(run.data(dataset(), batch_size=BATCH)):
            model[2].requires_grad_(requires_grad=number == 2)
            backward(model, batch)
            optimizer.step()

    async with Rig() as rig:
        with pytest.raises(UsageError, match=r"2\.weight needs a gradient now"):
            await as_worker(rig, script)


async def test_tied_parameters_stay_tied_and_frozen_ones_as_they_are() -> None:
    def loop(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> nn.Module:
        train(model, optimizer, data)
        return model

    model = await as_trained_locally(loop, Tied)
    assert isinstance(model, Tied)
    assert model.second.weight is model.first.weight
    assert not torch.equal(model.first.weight, torch.eye(6))
    assert_equal(model.inner[0], network()[0])


async def test_a_compiled_model_trains_and_its_parameters_keep_their_names() -> None:
    # What differs between backends is how they compute; this one needs no compiler.
    def loop(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> nn.Module:
        compiled = torch.compile(model, backend="aot_eager")
        train(compiled, optimizer, data)  # type: ignore[arg-type]
        return model

    await as_trained_locally(loop)

    def script(run: elasticps.Run) -> list[str]:
        compiled = torch.compile(network(), backend="aot_eager")
        run.optimizer(compiled, "sgd", lr=0.1)  # type: ignore[arg-type]
        return [row.name for row in rig.model.parameters] if rig.model else []

    async with Rig() as rig:
        assert await as_worker(rig, script) == [name for name, _ in network().named_parameters()]
