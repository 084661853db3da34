"""Parameters on a GPU are served by copies on the host; where there is none, by a fake one.

The fake's copies happen when they are waited for, as a device's may: what is read before that is
rubbish, and what is copied outside of its context is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn, optim

import elasticps
from elasticps.core.consistency import Consistency
from elasticps.errors import UsageError
from elasticps.testing.rig import Rig
from elasticps.worker import training as training_module
from elasticps.worker.device import Staged
from tests.support.scripts import (
    BATCH,
    as_worker,
    as_workers,
    assert_equal,
    backward,
    batches,
    dataset,
    network,
)


class FakeStreams:
    """A device whose memory is the host's."""

    def __init__(self, _: torch.device) -> None:
        self._queued: list[tuple[torch.Tensor, torch.Tensor]] | None = None

    def host_like(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.full(tensor.shape, torch.nan, dtype=tensor.dtype)

    @contextmanager
    def copying(self) -> Iterator[None]:
        assert self._queued is None
        self._queued = []
        yield
        for into, tensor in self._queued:
            into.copy_(tensor)
        self._queued = None

    def copy(self, into: torch.Tensor, tensor: torch.Tensor) -> None:
        assert self._queued is not None, "copied outside of the stream"
        self._queued.append((into, tensor))


DEVICES = ["fake", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "cuda":
        return "cuda"
    staged = partial(Staged, streams=FakeStreams, is_staged=lambda _: True)
    monkeypatch.setattr(training_module, "Staged", staged)
    return "cpu"


def on(device: str, data: Any) -> Iterator[Any]:
    for inputs, targets in data:
        yield inputs.to(device), targets.to(device)


def trained(device: str, name: str = "adamw", **more: Any) -> Callable[[elasticps.Run], nn.Module]:
    def script(run: elasticps.Run) -> nn.Module:
        model = network().to(device)
        optimizer = run.optimizer(model, name, lr=0.01, **more)
        for batch in on(device, run.data(dataset(), batch_size=BATCH)):
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        return model.cpu()

    return script


def trained_alone(data: Any, state: Any = None) -> tuple[nn.Module, Any]:
    model = network()
    optimizer = optim.AdamW(model.parameters(), lr=0.01)
    if state is not None:
        model.load_state_dict(state[0])
        optimizer.load_state_dict(state[1])
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()
    return model, optimizer


async def test_training_equals_that_on_the_cpu(device: str) -> None:
    async with Rig() as rig:
        model = await as_worker(rig, trained(device))
    assert_equal(model, trained_alone(batches())[0], exactly=device == "cpu")


async def test_workers_of_a_device_and_without_agree(device: str) -> None:
    async with Rig(start_workers=2) as rig:
        one, other = await as_workers(rig, 2, trained(device))
    assert_equal(one, other)
    assert_equal(one, trained_alone(batches())[0], exactly=False)


async def test_a_round_in_which_nothing_has_a_gradient_changes_nothing(device: str) -> None:
    def script(run: elasticps.Run) -> nn.Module:
        model = network().to(device)
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        backward(model, next(on(device, batches())))
        optimizer.step()
        before = [item.detach().cpu().clone() for item in model.parameters()]
        optimizer.zero_grad()
        optimizer.step()
        assert all(map(torch.equal, before, [item.cpu() for item in model.parameters()]))
        return model

    async with Rig() as rig:
        await as_worker(rig, script)


async def test_its_state_dict_goes_to_a_local_optimizer_and_comes_from_one(device: str) -> None:
    first, second = list(batches())[:4], list(batches())[4:]

    def script(run: elasticps.Run) -> Any:
        model = network().to(device)
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        model.load_state_dict(values)
        optimizer.load_state_dict(state)
        for batch in on(device, second):
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
        return model.cpu(), optimizer.state_dict()

    begun, local = trained_alone(first)
    values, state = begun.state_dict(), local.state_dict()
    async with Rig() as rig:
        model, found = await as_worker(rig, script)
    wanted, its = trained_alone(second, (values, state))
    assert_equal(model, wanted, exactly=device == "cpu")
    for key, entry in its.state_dict()["state"].items():
        for name, item in entry.items():
            torch.testing.assert_close(found["state"][key][name].cpu(), item)


async def test_each_workers_own_steps_are_clipped_and_read_there_too(device: str) -> None:
    async with Rig(consistency=Consistency.ASYNC) as rig:
        model = await as_worker(rig, trained(device, "sgd", clip_grad_norm=0.05))
    plain = network()
    optimizer = optim.SGD(plain.parameters(), lr=0.01)
    for batch in batches():
        optimizer.zero_grad()
        backward(plain, batch)
        nn.utils.clip_grad_norm_(plain.parameters(), 0.05)
        optimizer.step()
    assert_equal(model, plain, exactly=False)


async def test_a_strategy_that_steps_in_the_workers_is_refused_by_name(device: str) -> None:
    def script(run: elasticps.Run) -> None:
        with pytest.raises(UsageError, match="parameters on a GPU") as refused:
            run.optimizer(network().to(device), "sgd", lr=0.1)
        assert refused.value.field == "device"

    async with Rig(strategy="all-reduce") as rig:
        await as_worker(rig, script)
