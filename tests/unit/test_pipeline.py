"""A model as a row of layers: what is held of it, what is drawn, what is measured."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch
from torch import nn

from elasticps.api.pipeline import Pipeline, has_room
from elasticps.errors import UsageError
from elasticps.strategies.layer_costs import timed, traced
from elasticps.strategies.room import room_bytes
from tests.support.pipelines import drawn, layers, loss_of


class Scale(nn.Module):
    """A layer of one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def reset_parameters(self) -> None:
        nn.init.constant_(self.scale, 3.0)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs * self.scale


def test_initial_values_depend_on_the_layer_and_the_seed_alone() -> None:
    whole, other = drawn(), drawn(seed=1)
    pipeline = Pipeline(layers("meta"), loss_of)
    torch.manual_seed(77)
    for layer in (5, 0, 3):
        pipeline.draw(layer)
        for mine, its in zip(pipeline.trained(layer), whole[layer].parameters(), strict=True):
            assert torch.equal(mine, its)
    assert not torch.equal(whole[0].weight, other[0].weight)  # type: ignore[arg-type]


def test_drawing_leaves_the_scripts_random_numbers_as_they_were() -> None:
    pipeline = Pipeline(layers("meta"), loss_of)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    pipeline.draw(0)
    timed(pipeline, torch.randn(2, 6, generator=torch.Generator()))
    assert torch.equal(torch.rand(4), expected)


def test_what_is_not_held_takes_no_room_and_keeps_its_identity() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(1000, 1000), Scale(), nn.Linear(1000, 1))
    pipeline = Pipeline(model, loss_of)
    parameters = dict(model.named_parameters())
    assert [pipeline.is_held(layer) for layer in range(3)] == [False] * 3
    assert not has_room(parameters["0.weight"])
    assert parameters["0.weight"].shape == (1000, 1000)
    assert bool(model(torch.ones(1, 1000)).isnan().all())

    pipeline.draw(0)
    pipeline.draw(1)
    assert float(parameters["1.scale"].detach()) == 3.0
    parameters["0.weight"].grad = torch.ones(1000, 1000)
    pipeline.drop([0, 1])

    assert parameters["0.weight"].grad is None
    assert not has_room(parameters["0.weight"])
    assert dict(model.named_parameters())["0.weight"] is parameters["0.weight"]
    assert [pipeline.is_held(layer) for layer in range(3)] == [False] * 3


def test_buffers_and_frozen_parameters_are_every_workers_own() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 1))
    model[2].requires_grad_(False)
    Pipeline(model, loss_of)
    assert torch.equal(model[1].running_var, torch.ones(6))  # type: ignore[arg-type]
    assert has_room(model[2].weight)  # type: ignore[arg-type]
    assert bool(model[2].weight.isfinite().all())  # type: ignore[union-attr]
    assert not has_room(model[1].weight)  # type: ignore[arg-type]


def test_attention_is_drawn_too() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True))
    pipeline = Pipeline(model, loss_of)
    pipeline.draw(0)
    assert all(bool(item.isfinite().all()) for item in model.parameters())


class Lonely(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.ones(3))


def of_one_parameter() -> nn.Sequential:
    one, other = nn.Linear(4, 4), nn.Linear(4, 4)
    other.weight = one.weight
    return nn.Sequential(one, other)


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (lambda: nn.Linear(2, 2), "an nn.Sequential"),
        (nn.Sequential, "an nn.Sequential"),
        (of_one_parameter, "0.weight and 1.weight are one parameter"),
    ],
)
def test_what_cannot_be_cut_is_refused(made: Any, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Pipeline(made(), loss_of)


def test_a_layer_that_cannot_be_drawn_is_named() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(Lonely()))
    with pytest.raises(UsageError, match=r"layer 1\.0, a Lonely"):
        Pipeline(model, loss_of).draw(1)


def test_a_batch_before_the_optimizer_is_refused() -> None:
    with pytest.raises(UsageError, match=r"call run\.optimizer"):
        Pipeline(layers(), loss_of).forward_backward(torch.ones(1, 6), torch.ones(1, 1))


# -- what layers cost ---------------------------------------------------------------------------


def test_shapes_and_kept_bytes_are_those_of_a_real_pass() -> None:
    model = nn.Sequential(nn.Linear(6, 40), nn.Tanh(), nn.Embedding(10, 3))
    trace = traced(model[:2], torch.empty(5, 6, device="meta"))
    assert [tuple(border.shape) for border in trace.borders] == [(5, 6), (5, 40), (5, 40)]
    assert list(trace.kept) == [5 * 6 * 4, 5 * 40 * 4]
    tokens = traced(model[2:], torch.empty(5, 7, dtype=torch.int64, device="meta"))
    assert tuple(tokens.borders[-1].shape) == (5, 7, 3)


@pytest.mark.parametrize(
    "forward",
    [
        lambda inputs: inputs[inputs > 0],
        lambda inputs: (inputs, inputs),
        lambda inputs: inputs.sum(),
    ],
)
def test_a_layer_whose_output_cannot_be_foreseen_is_refused_by_name(forward: Any) -> None:
    class Odd(nn.Module):
        def forward(self, inputs: torch.Tensor) -> Any:
            return forward(inputs)

    with pytest.raises(UsageError, match="layer 1 "):
        traced(nn.Sequential(nn.Linear(2, 2), Odd()), torch.empty(3, 2, device="meta"))


def test_a_slow_layer_is_measured_as_slow_and_buffers_stay() -> None:
    class Slow(nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            time.sleep(0.05)
            return super().forward(inputs)

    model = nn.Sequential(Slow(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    pipeline = Pipeline(model, loss_of)
    seconds = timed(pipeline, torch.randn(16, 4))
    assert seconds[0] > seconds[2] > 0
    assert torch.equal(model[1].running_mean, torch.zeros(8))  # type: ignore[arg-type]


def test_there_is_room_and_it_has_an_end() -> None:
    assert 0 < room_bytes() < float("inf")
