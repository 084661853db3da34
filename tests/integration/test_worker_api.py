"""What a training script meets: ``join``, ``Run``, the optimizer and the data, on real servers."""

from __future__ import annotations

import asyncio
import copy
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler
from torch.utils.data import IterableDataset, TensorDataset

import elasticps
from elasticps.core.audit import Verdict
from elasticps.errors import ElasticError, JobFailed, PeerUnavailable, PluginError, UsageError
from elasticps.wire.address import Address
from elasticps.wire.control import ControlEnd
from elasticps.wire.listener import listen
from elasticps.worker import agent
from elasticps.worker.run import AGENT_VARIABLE, WORKER_VARIABLE
from tests.support.processes import open_fds, wait_until
from tests.support.rig import Rig
from tests.support.wire import PATIENCE_S, eventually

SIZE = 60
BATCH = 8
loss_of = nn.MSELoss()


def dataset(size: int = SIZE) -> TensorDataset:
    random = torch.Generator().manual_seed(5)
    inputs = torch.randn(size, 6, generator=random)
    return TensorDataset(inputs, inputs.sum(1, keepdim=True) * 2 + 1)


def network(seed: int = 0) -> nn.Module:
    random = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 300), nn.Tanh(), nn.Linear(300, 1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.1)
    return model


def batches(epochs: int = 1, size: int = SIZE, batch_size: int = BATCH) -> Iterator[Any]:
    """A local run's batches, in the order that ``run.data`` promises."""
    data = dataset(size)
    for epoch in range(epochs):
        for part in torch.split(elasticps.sample_order(size, 0, epoch), batch_size):
            yield data[part]


def backward(model: nn.Module, batch: Any) -> torch.Tensor:
    inputs, targets = batch
    loss: torch.Tensor = loss_of(model(inputs), targets)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss


def train(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> None:
    for batch in data:
        optimizer.zero_grad()
        backward(model, batch)
        optimizer.step()


def assert_equal(one: nn.Module, other: nn.Module, *, exactly: bool = True) -> None:
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        if exactly:
            assert torch.equal(mine, its)
        else:
            torch.testing.assert_close(mine, its, rtol=0, atol=1e-5)


Script = Callable[[elasticps.Run], Any]


def joined(rig: Rig, uid: str, script: Script) -> Any:
    """``script`` as a worker's process runs it, but in this thread; its exit is returned."""
    try:
        with elasticps.join(rig.environment(uid)) as run:
            return script(run)
    except elasticps.WorkerRetired as left:
        return left


async def as_worker(rig: Rig, script: Script, uid: str = "w1") -> Any:
    """What ``script`` returns, from a thread of its own."""
    return await asyncio.to_thread(joined, rig, uid, script)


async def as_workers(rig: Rig, count: int, script: Script) -> list[Any]:
    return await asyncio.gather(*(as_worker(rig, script, f"w{n}") for n in range(count)))


# -- training -----------------------------------------------------------------------------------

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
    verdicts = [finished.verdict for finished in rig.finished.values()]
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


# -- as torch's optimizers behave ---------------------------------------------------------------

SCHEDULERS: dict[str, Callable[[optim.Optimizer], Any]] = {
    "StepLR": lambda opt: lr_scheduler.StepLR(opt, 2, gamma=0.5),
    "LambdaLR": lambda opt: lr_scheduler.LambdaLR(opt, lambda number: 1 / (1 + number)),
    "OneCycleLR": lambda opt: lr_scheduler.OneCycleLR(opt, max_lr=0.1, total_steps=9),
    "CyclicLR": lambda opt: lr_scheduler.CyclicLR(opt, 0.001, 0.1, step_size_up=2),
    "SequentialLR": lambda opt: lr_scheduler.SequentialLR(
        opt,
        [lr_scheduler.LinearLR(opt, total_iters=3), lr_scheduler.ExponentialLR(opt, 0.9)],
        milestones=[3],
    ),
}


@pytest.mark.parametrize("name", SCHEDULERS)
async def test_a_scheduler_works_as_on_the_local_optimizer(name: str) -> None:
    def scheduled(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> list[float]:
        scheduler = SCHEDULERS[name](optimizer)
        rates = []
        for batch in data:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            scheduler.step()
            rates += scheduler.get_last_lr()
        return rates

    def script(run: elasticps.Run) -> tuple[nn.Module, list[float]]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01, momentum=0.9)
        return model, scheduled(model, optimizer, run.data(dataset(), batch_size=BATCH))

    async with Rig() as rig:
        model, rates = await as_worker(rig, script)
    local = network()
    sgd = optim.SGD(local.parameters(), lr=0.01, momentum=0.9)
    assert rates == scheduled(local, sgd, batches())
    assert_equal(model, local)


async def test_a_plateau_of_the_loss_lowers_the_rate_on_the_servers() -> None:
    def scheduled(model: nn.Module, optimizer: optim.Optimizer, data: Any) -> None:
        scheduler = lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
        for batch in data:
            optimizer.zero_grad()
            backward(model, batch)
            optimizer.step()
            scheduler.step(1.0)

    def script(run: elasticps.Run) -> nn.Module:
        model = network()
        optimizer = run.optimizer(model, "adamw", lr=0.01)
        scheduled(model, optimizer, run.data(dataset(), batch_size=BATCH))
        return model

    async with Rig() as rig:
        model = await as_worker(rig, script)
    local = network()
    scheduled(local, optim.AdamW(local.parameters(), lr=0.01), batches())
    assert_equal(model, local)


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


# -- errors that say what to do -----------------------------------------------------------------


def sgd(run: elasticps.Run, **options: Any) -> Any:
    return run.optimizer(network(), "sgd", **{"lr": 0.01, **options})


def data_of(run: elasticps.Run, **options: Any) -> Any:
    return run.data(dataset(), **{"batch_size": BATCH, **options})


class Endless(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(int, 1)


def frozen() -> nn.Module:
    return network().requires_grad_(requires_grad=False)


def transposed() -> nn.Module:
    model = nn.Linear(3, 4)
    model.weight = nn.Parameter(torch.randn(3, 4).t())
    return model


def strange_group() -> list[dict[str, Any]]:
    return [{"params": [nn.Parameter(torch.ones(2))]}]


def twice() -> list[dict[str, Any]]:
    return [{"params": [item]} for item in [*frozen_pair, frozen_pair[0]]]


frozen_pair = list(network().parameters())[:2]

MISUSES: dict[str, tuple[Script, type[ElasticError], str]] = {
    "an unknown optimizer": (
        lambda run: run.optimizer(network(), "sdg", lr=0.1),
        PluginError,
        "name",
    ),
    "an unknown option": (lambda run: sgd(run, speed=3), UsageError, "options"),
    "a bad option": (lambda run: sgd(run, lr=-1.0), UsageError, "options"),
    "an option that is no number": (lambda run: sgd(run, lr=nn.ReLU()), UsageError, "options"),
    "a model without anything to train": (
        lambda run: run.optimizer(frozen(), "sgd", lr=0.1),
        UsageError,
        "model",
    ),
    "a parameter that is not contiguous": (
        lambda run: run.optimizer(transposed(), "sgd", lr=0.1),
        UsageError,
        "stride",
    ),
    "a parameter on no real device": (
        lambda run: run.optimizer(nn.Linear(2, 2, device="meta"), "sgd", lr=0.1),
        UsageError,
        "device",
    ),
    "a group of a parameter that is not the model's": (
        lambda run: sgd(run, groups=strange_group()),
        UsageError,
        "groups",
    ),
    "a parameter in two groups": (lambda run: sgd(run, groups=twice()), UsageError, "options"),
    "two optimizers": (lambda run: [sgd(run), sgd(run)], UsageError, ""),
    "two loaders": (lambda run: [data_of(run), data_of(run)], UsageError, "run.data"),
    "a round before the optimizer": (lambda run: run.round, UsageError, ""),
    "a step of another's": (lambda run: run.step([]), UsageError, ""),
    "data before the optimizer": (lambda run: list(data_of(run)), UsageError, ""),
    "data without a length": (
        lambda run: run.data(Endless(), batch_size=1),  # type: ignore[arg-type]
        UsageError,
        "dataset",
    ),
    "data without samples": (
        lambda run: run.data(torch.ones(0), batch_size=1),
        UsageError,
        "dataset",
    ),
    "a batch of none": (lambda run: data_of(run, batch_size=0), UsageError, "batch_size"),
    "a batch of a half": (lambda run: data_of(run, batch_size=2.5), UsageError, "batch_size"),
    "a batch of a word": (lambda run: data_of(run, batch_size="8"), UsageError, "batch_size"),
    "no epochs": (lambda run: data_of(run, epochs=0), UsageError, "epochs"),
    "epochs of a half": (lambda run: data_of(run, epochs=1.5), UsageError, "epochs"),
    "a seed that is no number": (lambda run: data_of(run, seed="x"), UsageError, "seed"),
    "a seed beyond 64 bits": (lambda run: data_of(run, seed=1 << 64), UsageError, "seed"),
    "a metric that is no number": (
        lambda run: run.log(loss=cast("float", "low")),
        UsageError,
        "loss",
    ),
    "a metric of many numbers": (lambda run: run.log(loss=torch.ones(2)), UsageError, "loss"),
    "a param group that comes late": (
        lambda run: sgd(run).add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        UsageError,
        "param_group",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
async def test_a_misuse_is_an_error_that_names_the_field(name: str) -> None:
    script, kind, field = MISUSES[name]
    async with Rig() as rig:
        with pytest.raises(kind) as caught:
            await as_worker(rig, script)
        assert (caught.value.field or "") == field
        assert rig.finished == {}


async def test_a_batch_that_was_not_stepped_is_an_error() -> None:
    def script(run: elasticps.Run) -> None:
        sgd(run)
        for _ in run.data(dataset(), batch_size=BATCH):
            pass

    async with Rig() as rig:
        with pytest.raises(UsageError, match="followed by 0 "):
            await as_worker(rig, script)


async def test_a_batch_that_was_stepped_twice_is_an_error() -> None:
    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        for batch in run.data(dataset(), batch_size=BATCH):
            backward(model, batch)
            optimizer.step()
            optimizer.step()

    async with Rig() as rig:
        with pytest.raises(UsageError, match="followed by 2 "):
            await as_worker(rig, script)


async def test_workers_with_different_models_are_told_where_they_differ() -> None:
    barrier = threading.Barrier(2)

    def script(run: elasticps.Run) -> UsageError | None:
        lr = [0.1, 0.2][barrier.wait(PATIENCE_S)]
        try:
            run.optimizer(network(), "sgd", lr=lr)
        except UsageError as error:
            return error
        return None

    async with Rig() as rig:
        (error,) = filter(None, await as_workers(rig, 2, script))
    assert set(re.findall("{.*?}", error.field)) == {"{'lr': 0.1}", "{'lr': 0.2}"}


async def test_data_that_differs_from_the_jobs_is_an_error_that_shows_both() -> None:
    barrier = threading.Barrier(2)

    def script(run: elasticps.Run) -> str:
        sgd(run)
        size = [10, 20][barrier.wait(PATIENCE_S)]
        data = iter(run.data(dataset(size), batch_size=5))
        try:
            next(data)
        except JobFailed as error:
            return str(error)
        return ""

    async with Rig(start_workers=2) as rig:
        (error,) = filter(None, await as_workers(rig, 2, script))
    assert "10 samples" in error
    assert "20 samples" in error


async def test_sparse_gradients_are_refused_by_name() -> None:
    def script(run: elasticps.Run) -> None:
        model = nn.Embedding(10, 3, sparse=True)
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        model(torch.tensor([1, 2])).sum().backward()
        optimizer.step()

    async with Rig() as rig:
        with pytest.raises(UsageError, match="sparse") as caught:
            await as_worker(rig, script)
        assert caught.value.field == "grad"


# -- the life of a run --------------------------------------------------------------------------


async def test_a_run_tells_where_it_is_and_what_the_script_logs() -> None:
    def script(run: elasticps.Run) -> list[Any]:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        for batch in run.data(dataset(), batch_size=BATCH):
            loss = backward(model, batch)
            run.log(loss=loss, batch=len(batch[0]))
            optimizer.step()
        return [run.node, run.round, run.rank, run.world, run.is_main, loss.item()]

    async with Rig() as rig:
        *place, loss = await as_worker(rig, script)
        assert place == ["here", 8, 0, 1, True]
        await eventually(lambda: "w1" in rig.finished)
        told = rig.progress["w1"]
        assert (told.round, told.rank, told.world) == (8, 0, 1)
        assert told.metrics == {"loss": loss, "batch": 4.0}
        assert not rig.finished["w1"].left
        assert rig.finished["w1"].verdict is None


async def test_one_worker_is_the_main_one_and_all_hear_of_a_change() -> None:
    def script(run: elasticps.Run, rounds: int) -> tuple[int, bool, int]:
        changes = 0

        def listener() -> None:
            nonlocal changes
            changes += 1

        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        run.on_membership_change(listener)
        main = run.is_main
        train(model, optimizer, list(batches())[:rounds])
        return run.rank, main, changes

    async with Rig(start_workers=2) as rig:
        short = asyncio.create_task(as_worker(rig, lambda run: script(run, 3), "w1"))
        long = asyncio.create_task(as_worker(rig, lambda run: script(run, 6), "w2"))
        one, other = await short, await long
    assert [one[1], other[1]].count(True) == 1
    assert (one[2], other[2]) == (0, 1)
    assert other[0] == 0


async def test_a_retired_worker_ends_its_round_and_leaves_quietly() -> None:
    ready, told = threading.Event(), threading.Event()

    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        data = list(batches())
        train(model, optimizer, data[:2])
        ready.set()
        assert told.wait(PATIENCE_S)
        wait_until(lambda: run._agent.retiring)
        train(model, optimizer, data[2:])

    async with Rig(audit=True) as rig:
        running = asyncio.create_task(as_worker(rig, script))
        await asyncio.to_thread(ready.wait, PATIENCE_S)
        rig.retire("w1")
        told.set()
        left = await running
        assert (left.code, left.reason) == (0, "the test says so")
        await eventually(lambda: "w1" in rig.finished)
        assert rig.finished["w1"].left
        verdict = rig.finished["w1"].verdict
        assert verdict is not None
        assert (verdict.lost, verdict.duplicated) == (0, 0)
        assert verdict.acknowledged == 3 * (len(rig.entries) - 1)


async def test_a_script_that_fails_leaves_no_success_and_no_connection() -> None:
    def script(run: elasticps.Run) -> None:
        sgd(run)
        raise ZeroDivisionError

    async with Rig() as rig:
        with pytest.raises(ZeroDivisionError):
            await as_worker(rig, script)
        await eventually(lambda: not rig.alive)
        assert rig.finished == {}
        assert threads() == []


def threads() -> list[str]:
    return [item.name for item in threading.enumerate() if item.name == "elasticps-data"]


async def test_closing_twice_is_closing_once_and_nothing_works_afterwards() -> None:
    def script(rig: Rig) -> None:
        run = elasticps.join(rig.environment("w1"))
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.01)
        train(model, optimizer, list(batches())[:2])
        run.close()
        run.close()
        later: list[Callable[[], Any]] = [
            optimizer.step,
            optimizer.state_dict,
            lambda: list(run.data(dataset(), batch_size=4)),
        ]
        for act in later:
            with pytest.raises(UsageError, match="is closed"):
                act()

    async with Rig() as rig:
        await asyncio.to_thread(script, rig)
        await eventually(lambda: "w1" in rig.finished)
        assert threads() == []


async def test_a_run_whose_servers_are_gone_at_the_end_still_closes() -> None:
    def script(run: elasticps.Run) -> None:
        sgd(run)
        trained.set()
        assert gone.wait(PATIENCE_S)

    trained, gone = threading.Event(), threading.Event()
    async with Rig(servers=1) as rig:
        running = asyncio.create_task(as_worker(rig, script))
        await asyncio.to_thread(trained.wait, PATIENCE_S)
        for conn in list(rig.control.connections):
            await conn.aclose()
        await rig.kill_server(next(iter(rig.servers)))
        gone.set()
        with pytest.raises(PeerUnavailable, match="daemon is gone"):
            await running
        assert threads() == []


# -- join ---------------------------------------------------------------------------------------


def refused_join(environment: dict[str, str]) -> ElasticError:
    before = open_fds()
    with pytest.raises(ElasticError) as caught:
        elasticps.join(environment)
    assert threads() == []
    assert open_fds() == before
    return caught.value


@pytest.mark.parametrize(
    "environment",
    [{}, {AGENT_VARIABLE: "unix:/nowhere"}, {WORKER_VARIABLE: "w1"}],
    ids=["nothing", "no worker", "no agent"],
)
def test_join_outside_of_a_job_says_how_to_start_one(environment: dict[str, str]) -> None:
    error = refused_join(environment)
    assert isinstance(error, UsageError)
    assert error.field == AGENT_VARIABLE
    assert "elasticps run" in str(error.hint)


def test_join_with_an_address_that_is_none_names_the_scheme() -> None:
    error = refused_join({AGENT_VARIABLE: "http://here", WORKER_VARIABLE: "w1"})
    assert isinstance(error, UsageError)
    assert error.field == "scheme"


def test_join_where_nobody_listens_says_so() -> None:
    error = refused_join({AGENT_VARIABLE: "unix:/nowhere/at.sock", WORKER_VARIABLE: "w1"})
    assert isinstance(error, PeerUnavailable)


@pytest.mark.parametrize("manner", ["hangs up", "is silent"])
async def test_join_at_a_daemon_that_does_not_know_the_worker_is_an_error(
    manner: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "CONNECT_TIMEOUT_S", 0.2)

    def on_message(conn: Any, message: Any) -> None:
        if manner == "hangs up":
            conn.abort()

    end = ControlEnd(on_message, lambda conn: None)
    async with listen(Address.unix(tmp_path / "c.sock"), lambda _: end) as control:
        environment = {AGENT_VARIABLE: str(control.address), WORKER_VARIABLE: "w1"}

        def join() -> ElasticError:
            with pytest.raises(ElasticError) as caught:
                elasticps.join(environment)
            return caught.value

        error = await asyncio.to_thread(join)
        assert isinstance(error, PeerUnavailable)
        await eventually(lambda: not control.connections)
        assert threads() == []
