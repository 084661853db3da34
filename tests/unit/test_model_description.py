"""What of a script's model the servers are told, and what they cannot serve, by field."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from elasticps.core.blocks import Model
from elasticps.errors import UsageError
from elasticps.worker.parameters import describe


def described(
    items: list[tuple[str, torch.Tensor]],
    groups: list[dict[str, Any]] | None = None,
    **options: Any,
) -> Model:
    """The model of ``items`` with one plain param group, unless told otherwise."""
    return describe(
        items,
        groups or [{"params": [item for _, item in items], "lr": 0.1, **options}],
        optimizer="sgd",
        options=options,
        elementwise=True,
        block_bytes=4096,
    )


def refused_field(items: list[tuple[str, torch.Tensor]], **more: Any) -> str | None:
    with pytest.raises(UsageError) as caught:
        described(items, **more)
    return caught.value.field


@pytest.mark.parametrize(
    ("tensor", "field"),
    [
        (torch.zeros(3, dtype=torch.int64), "dtype"),
        (torch.zeros(3, dtype=torch.bool), "dtype"),
        (torch.zeros(3, dtype=torch.complex64), "dtype"),
        (torch.zeros(3, device="meta"), "device"),
        (torch.zeros(3, 4).t(), "stride"),
        (torch.zeros(1).expand(5), "stride"),
        (torch.zeros(0, 4), "shape"),
    ],
    ids=["int", "bool", "complex", "meta", "transposed", "expanded", "empty"],
)
def test_a_parameter_that_cannot_be_served_is_named(tensor: torch.Tensor, field: str) -> None:
    with pytest.raises(UsageError, match=r"layer\.weight") as caught:
        described([("good", torch.zeros(2)), ("layer.weight", tensor)])
    assert caught.value.field == field


def test_a_model_without_parameters_is_refused() -> None:
    assert refused_field([]) == "parameters"


@pytest.mark.parametrize("block_bytes", [0, 4095, 2**30])
def test_a_block_size_out_of_range_is_refused(block_bytes: int) -> None:
    item = torch.zeros(1)
    with pytest.raises(UsageError) as caught:
        describe(
            [("p", item)],
            [{"params": [item]}],
            optimizer="sgd",
            options={},
            elementwise=True,
            block_bytes=block_bytes,
        )
    assert caught.value.field == "block_bytes"


@pytest.mark.parametrize(
    ("option", "item"),
    [
        ("lr", lambda step: 0.1 / step),
        ("lr", [torch.tensor(0.1), torch.tensor(0.2)]),
        ("lr", torch.tensor([0.1, 0.2])),
        ("betas", (0.9, object())),
        ("weight_decay", {"bias": 0.0}),
    ],
    ids=["a function", "list of tensors", "tensor of two", "tuple of objects", "dict"],
)
def test_an_option_that_is_not_plain_is_named(option: str, item: object) -> None:
    assert refused_field([("p", torch.zeros(1))], **{option: item}) == option


def test_options_reach_the_model_as_plain_numbers() -> None:
    model = described(
        [("p", torch.zeros(1))], lr=torch.tensor(0.5), betas=(0.9, 0.5), fused=None, mode="x"
    )
    wanted = {"lr": 0.5, "betas": [0.9, 0.5], "fused": None, "mode": "x"}
    assert model.groups == (wanted,)
    assert model.options == wanted


class Tied(nn.Module):
    """An output layer that shares its weight with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight


def test_tied_parameters_are_one_parameter() -> None:
    model = described([*Tied().named_parameters()])
    assert [(row.name, row.shape) for row in model.parameters] == [("embed.weight", (10, 4))]


def test_parameters_in_no_group_are_left_to_the_worker() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
    groups = [{"params": [net[1].bias], "lr": 0.5}, {"params": [net[0].weight], "lr": 0.1}]
    model = described([*net.named_parameters()], groups)
    assert [(row.name, row.group) for row in model.parameters] == [("0.weight", 1), ("1.bias", 0)]
    assert refused_field([("other", torch.zeros(1))], groups=groups) == "groups"
