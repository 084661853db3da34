"""Scripts that use a run wrongly: errors that say what to do."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from typing import Any, cast

import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

import elasticps
from elasticps.core.blocks import Model, Parameter
from elasticps.errors import ElasticError, JobFailed, PluginError, UsageError
from elasticps.testing.rig import Rig
from elasticps.worker.untrained import check_untrained, fingerprint, untrained_of
from tests.support.scripts import (
    BATCH,
    Script,
    as_worker,
    as_workers,
    backward,
    dataset,
    network,
    sgd,
)
from tests.support.wire import PATIENCE_S


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
