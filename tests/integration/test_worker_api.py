"""What a script meets beside its training: errors that say what to do, and a run's life."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import elasticps
from elasticps.core.blocks import Model, Parameter
from elasticps.errors import ElasticError, JobFailed, PeerUnavailable, PluginError, UsageError
from elasticps.testing.rig import Rig
from elasticps.wire.address import Address
from elasticps.wire.control import ControlEnd
from elasticps.wire.listener import listen
from elasticps.worker import agent
from elasticps.worker.join import AGENT_VARIABLE, WORKER_VARIABLE
from elasticps.worker.untrained import check_untrained, fingerprint, untrained_of
from tests.support.processes import open_fds, wait_until
from tests.support.scripts import (
    BATCH,
    Script,
    as_worker,
    as_workers,
    backward,
    batches,
    dataset,
    network,
    train,
)
from tests.support.wire import PATIENCE_S, eventually

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
    "a step of another's": (lambda run: run._training.step([]), UsageError, ""),
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


@pytest.mark.parametrize("strategy", ["data-parallel", "local-sgd:h=2"])
async def test_a_parameter_that_is_given_another_dtype_is_named_with_both(strategy: str) -> None:
    def script(run: elasticps.Run) -> None:
        model = network()
        optimizer = run.optimizer(model, "sgd", lr=0.1)
        model[2].bfloat16()
        for item in model.parameters():
            item.grad = torch.zeros_like(item)
        optimizer.step()

    async with Rig(strategy=strategy) as rig:
        with pytest.raises(UsageError) as caught:
            await as_worker(rig, script)
    assert caught.value.field == "2.weight"
    assert "2.weight is of bfloat16 now, and was of float32 at run.opt" in caught.value.what


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


async def test_workers_whose_frozen_values_differ_are_refused() -> None:
    barrier = threading.Barrier(2)

    def script(run: elasticps.Run) -> UsageError | None:
        model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
        frozen = model[0].weight.requires_grad_(requires_grad=False)
        frozen.fill_(float(barrier.wait(PATIENCE_S)))
        try:
            run.optimizer(model, "sgd", lr=0.1)
        except UsageError as error:
            return error
        return None

    async with Rig() as rig:
        (error,) = filter(None, await as_workers(rig, 2, script))
    assert error.field == "untrained"
    assert "0.weight [2, 2] float32 has other values there than here" in error.what


def test_what_differs_of_what_is_not_trained_is_named_with_its_shapes() -> None:
    def described(*buffers: tuple[str, torch.Tensor]) -> Model:
        model = network()
        for name, tensor in buffers:
            model.register_buffer(name, tensor)
        rows = untrained_of(model, list(model.named_parameters()))
        parameter = Parameter(name="p", shape=(1,), dtype="float32")
        return Model(
            parameters=(parameter,),
            optimizer="sgd",
            groups=({},),
            untrained=fingerprint(rows),
            untrained_rows=rows,
        )

    first = described(("mean", torch.zeros(3)), ("count", torch.tensor(0)))
    check_untrained(first, described(("mean", torch.zeros(3)), ("count", torch.tensor(0))))
    for other, told in (
        (described(("mean", torch.zeros(4))), "mean [3] float32 there, mean [4] float32 here"),
        (described(("mean", torch.zeros(3))), "count [] int64 there, no more here"),
    ):
        with pytest.raises(UsageError) as caught:
            check_untrained(first, other)
        assert told in caught.value.what


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


EARLIER: set[threading.Thread] = set()


@pytest.fixture(autouse=True)
def _earlier_threads() -> None:
    """A test before may have left one: of a strategy that hangs, to show that its case ends."""
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def threads() -> list[str]:
    """The data loops' threads that this test has begun and that still run."""
    begun = set(threading.enumerate()) - EARLIER
    return [item.name for item in begun if item.name == "elasticps-data"]


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
    assert open_fds() <= before
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
