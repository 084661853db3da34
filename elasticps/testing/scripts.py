"""Training scripts as users write them, run by threads of this process in place of processes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import elasticps
from elasticps.api.chosen_strategy import ChosenStrategy
from elasticps.errors import ElasticError
from elasticps.testing.rig import Rig

Script = Callable[[elasticps.Run], Any]


class Died(ElasticError):
    """Stands for a kill: nothing of the worker happens after it but that its sockets close."""


def samples(size: int, seed: int = 5) -> torch.utils.data.TensorDataset:
    """A function of six numbers to learn."""
    random = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, 6, generator=random)
    return torch.utils.data.TensorDataset(inputs, inputs.sum(1, keepdim=True) * 2 + 1)


def network(seed: int = 0) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    return torch.nn.functional.mse_loss(model(inputs), targets)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    optimizer.zero_grad()
    loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
    optimizer.step()


def stepped_by(
    run: elasticps.Run, model: nn.Module, name: str, **options: Any
) -> Callable[[Any], None]:
    """Hand ``model`` to the job; what is returned takes a step with a batch, as a script does."""
    if not ChosenStrategy(run._job.strategy).wants_pipeline:
        optimizer = run.optimizer(model, name, **options)
        return lambda batch: step(model, optimizer, batch)
    assert isinstance(model, nn.Sequential)
    pipeline = run.pipeline(model, nn.functional.mse_loss)
    optimizer = run.optimizer(pipeline, name, **options)

    def step_in_stages(batch: Any) -> None:
        optimizer.zero_grad()
        pipeline.forward_backward(*batch)
        optimizer.step()

    return step_in_stages


async def as_worker(rig: Rig, uid: str, script: Script) -> Any:
    """What ``script`` returns, or how it left or died, from a thread of its own.

    The thread is left behind where this is cancelled: a strategy that hangs must not hang the rest.
    """
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[Any] = loop.create_future()

    def tell(result: Any, error: BaseException | None) -> None:
        if ended.done():
            return
        if error is None:
            ended.set_result(result)
        else:
            ended.set_exception(error)

    def life() -> None:
        result, failure = None, None
        try:
            with elasticps.join(rig.environment(uid)) as run:
                result = script(run)
        except (elasticps.WorkerRetired, Died) as end:
            result = end
        except BaseException as error:  # told to who waits
            failure = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(tell, result, failure)

    threading.Thread(target=life, name=f"worker {uid}", daemon=True).start()
    return await ended
