"""Cutting a model into blocks, and refusing a model that cannot be cut."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elasticps.core.blocks import (
    DTYPE_BYTES,
    MAX_BLOCK_BYTES,
    MIN_BLOCK_BYTES,
    Model,
    Parameter,
    check_model,
    partition,
)
from elasticps.errors import UsageError
from tests.support.properties import REPRODUCIBLE

PARAMETER = Parameter(name="weight", shape=(4, 4), dtype="float32")
MODEL = Model(parameters=(PARAMETER,), optimizer="sgd", groups=({"lr": 0.1},))


@st.composite
def models(draw: st.DrawFn) -> Model:
    shapes = st.lists(st.integers(1, 60), max_size=3).map(tuple)
    parameters = tuple(
        Parameter(
            name=f"p{index}", shape=draw(shapes), dtype=draw(st.sampled_from(sorted(DTYPE_BYTES)))
        )
        for index in range(draw(st.integers(1, 5)))
    )
    return Model(
        parameters=parameters,
        optimizer="sgd",
        groups=({},),
        elementwise=draw(st.booleans()),
        block_bytes=draw(st.integers(MIN_BLOCK_BYTES, 3 * MIN_BLOCK_BYTES)),
    )


@settings(REPRODUCIBLE)
@given(models())
def test_blocks_cover_every_element_once_in_order(model: Model) -> None:
    blocks = partition(model)
    assert [block.id for block in blocks] == list(range(1, len(blocks) + 1))
    for index, parameter in enumerate(model.parameters):
        own = [block for block in blocks if block.parameter == index]
        edges = [0, *(block.stop for block in own)]
        assert [block.start for block in own] == edges[:-1]
        assert edges[-1] == prod(parameter.shape)
        assert all(block.numel >= 1 for block in own)
        assert all(block.nbytes == block.numel * DTYPE_BYTES[parameter.dtype] for block in own)
        if model.elementwise:
            assert all(block.nbytes <= model.block_bytes for block in own)
        else:
            assert len(own) == 1


@settings(REPRODUCIBLE)
@given(models())
def test_a_model_that_can_be_cut_is_accepted_and_survives_the_wire(model: Model) -> None:
    check_model(model)
    wired = msgspec.msgpack.decode(msgspec.msgpack.encode(model), type=Model)
    assert wired == model
    assert partition(wired) == partition(model)


def test_a_scalar_parameter_is_one_block_of_one_element() -> None:
    scalar = msgspec.structs.replace(PARAMETER, shape=())
    (block,) = partition(msgspec.structs.replace(MODEL, parameters=(scalar,)))
    assert (block.start, block.stop, block.nbytes) == (0, 1, 4)


@dataclass(frozen=True, slots=True)
class Bad:
    field: str
    model: dict[str, Any]
    parameter: dict[str, Any]


@pytest.mark.parametrize(
    "bad",
    [
        Bad("parameters", {"parameters": ()}, {}),
        Bad("block_bytes", {"block_bytes": MIN_BLOCK_BYTES - 1}, {}),
        Bad("block_bytes", {"block_bytes": MAX_BLOCK_BYTES + 1}, {}),
        Bad("block_bytes", {"block_bytes": -1}, {}),
        Bad("dtype", {}, {"dtype": "int64"}),
        Bad("shape", {}, {"shape": (3, 0)}),
        Bad("shape", {}, {"shape": (-5,)}),
        Bad("shape", {}, {"shape": (-2, -3)}),
        Bad("group", {}, {"group": 1}),
        Bad("group", {}, {"group": -1}),
        Bad("name", {"parameters": (PARAMETER, PARAMETER)}, {}),
        Bad("shape", {"elementwise": False}, {"shape": (MAX_BLOCK_BYTES // 4 + 1,)}),
    ],
)
def test_a_model_that_cannot_be_served_is_refused_with_its_field(bad: Bad) -> None:
    parameter = msgspec.structs.replace(PARAMETER, **bad.parameter)
    model = msgspec.structs.replace(MODEL, **{"parameters": (parameter,), **bad.model})
    with pytest.raises(UsageError) as refused:
        check_model(model)
    assert refused.value.field == bad.field


@pytest.mark.parametrize("block_bytes", [MIN_BLOCK_BYTES, MAX_BLOCK_BYTES])
def test_the_limits_of_a_block_themselves_are_allowed(block_bytes: int) -> None:
    check_model(msgspec.structs.replace(MODEL, block_bytes=block_bytes))


def test_a_whole_parameter_may_be_larger_than_block_bytes() -> None:
    large = msgspec.structs.replace(PARAMETER, shape=(MIN_BLOCK_BYTES,))
    model = msgspec.structs.replace(
        MODEL, parameters=(large,), elementwise=False, block_bytes=MIN_BLOCK_BYTES
    )
    check_model(model)
    (block,) = partition(model)
    assert block.nbytes == 4 * MIN_BLOCK_BYTES
