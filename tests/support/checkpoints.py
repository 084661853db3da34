"""Snapshots of a small model to write as checkpoints, and how two of them are compared."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from elasticps.checkpoint.manifest import DataPosition
from elasticps.checkpoint.snapshot import Snapshot, State, write
from elasticps.core.blocks import Model, Parameter
from elasticps.core.ids import Round

VERSION = "0.0.test"


def model(optimizer: str = "adam", dtype: str = "float32") -> Model:
    return Model(
        parameters=(
            Parameter(name="0.weight", shape=(3, 5), dtype=dtype),
            Parameter(name="0.bias", shape=(3,), dtype="bfloat16"),
            Parameter(name="scale", shape=(), dtype="float64"),
        ),
        optimizer=optimizer,
        options={"lr": 0.1, "betas": [0.9, 0.999]},
        groups=({"lr": 0.1, "weight_decay": 0.0},),
    )


def snapshot(number: int, *, job: str = "job", scalar: float = 0.25) -> Snapshot:
    """A cut after round ``number``, whose numbers are all that round's."""
    random = torch.Generator().manual_seed(number)
    described = model()
    values = {
        row.name: torch.randn(row.shape, generator=random).to(getattr(torch, row.dtype))
        for row in described.parameters
    }
    state: dict[str, State] = {
        name: {
            "step": torch.tensor(float(number)),
            "exp_avg": torch.randn(value.shape, generator=random),
            "flags": torch.tensor([True, False]),
            "mu": scalar,
            "count": number,
        }
        for name, value in values.items()
    }
    data = DataPosition(
        size=100, batch_size=7, epochs=2, seed=3, position=7 * number, given_back=((1, 3), (4, 5))
    )
    return Snapshot(
        job=job,
        owner="1d",
        round=Round(number),
        model=described,
        data=data,
        values=values,
        state=state,
    )


def write_round(root: Path, number: int) -> Path:
    return write(root, snapshot(number), version=VERSION)


def assert_same(one: Snapshot, other: Snapshot) -> None:
    assert (one.job, one.round, one.data) == (other.job, other.round, other.data)
    assert one.model.parameters == other.model.parameters
    assert one.values.keys() == other.values.keys()
    for name, value in one.values.items():
        assert torch.equal(value, other.values[name])
        assert value.dtype == other.values[name].dtype
    assert one.state.keys() == other.state.keys()
    for name, state in one.state.items():
        assert state.keys() == other.state[name].keys()
        for key, item in state.items():
            its = other.state[name][key]
            if isinstance(item, torch.Tensor):
                assert isinstance(its, torch.Tensor)
                assert torch.equal(item, its)
                assert item.dtype == its.dtype
            else:
                assert (type(item), item) == (type(its), its)


def fork(work: Callable[[], None]) -> int:
    """Do ``work`` in a copy of this process and return its wait status; 0 when it came through."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]
