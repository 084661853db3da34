"""What a block refuses to load, and that a refusal changes nothing and takes no memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim

from elasticps.api.optimizer import Optimizer, TorchOptimizer
from elasticps.core.blocks import Model, Parameter, partition
from elasticps.errors import PluginError, WireError
from elasticps.optimizers import builtin
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.messages import StateMeta, TensorMeta


def a_block(plugin: Optimizer = builtin.adam, **options: Any) -> TensorBlock:
    """A block of three float32 elements that has taken a step."""
    parameter = Parameter(name="p", shape=(3,), dtype="float32")
    options = options or {"lr": 0.1}
    model = Model(parameters=(parameter,), optimizer="x", options=options, groups=(options,))
    block = TensorBlock(partition(model)[0], parameter, model, plugin)
    block.step(torch.ones(3), {})
    return block


VALUE = TensorMeta("value", "float32", (3,), 12)
HUGE = 2**34


@pytest.mark.parametrize(
    ("rows", "nbytes", "field"),
    [
        pytest.param([], 0, "tensors", id="no value"),
        pytest.param([TensorMeta("value", "float32", (2,), 8)], 8, "tensors", id="too few"),
        pytest.param([TensorMeta("value", "float32", (4,), 16)], 16, "tensors", id="too many"),
        pytest.param([TensorMeta("value", "int32", (3,), 12)], 12, "tensors", id="other dtype"),
        pytest.param([TensorMeta("value", "float16", (6,), 12)], 12, "tensors", id="half dtype"),
        pytest.param([VALUE, VALUE], 24, "tensors", id="two values"),
        pytest.param([VALUE], 11, "nbytes", id="bytes missing"),
        pytest.param([VALUE], 13, "payload_length", id="bytes left over"),
        pytest.param([TensorMeta("value", "float32", (3,), 11)], 12, "nbytes", id="nbytes lies"),
        pytest.param([TensorMeta("value", "floaty", (3,), 12)], 12, "dtype", id="no such dtype"),
        pytest.param([TensorMeta("value", "nn", (3,), 12)], 12, "dtype", id="not a dtype"),
        pytest.param([TensorMeta("value", "", (3,), 12)], 12, "dtype", id="empty dtype"),
        pytest.param([TensorMeta("value", "float32", (-3,), -12)], 0, "shape", id="negative"),
        pytest.param([TensorMeta("value", "float32", (-3, -1), 12)], 12, "shape", id="negatives"),
        pytest.param([VALUE, TensorMeta("m", "uint8", (-1, 0), 0)], 12, "shape", id="minus zero"),
        pytest.param([VALUE, TensorMeta("m", "uint8", (HUGE,), HUGE)], 12, "nbytes", id="huge"),
        pytest.param([VALUE, TensorMeta("m", "uint8", (HUGE,), 0)], 12, "nbytes", id="huge lies"),
        pytest.param(
            [VALUE, TensorMeta("m", "uint8", (2**62, 4), 0)], 12, "shape", id="huge wraps around"
        ),
        pytest.param(
            [VALUE, TensorMeta("m", "uint8", (0, 2**63), 0)], 12, "shape", id="huge and empty"
        ),
        pytest.param(
            [VALUE, TensorMeta("m", "uint8", (0, 2**40, 2**40), 0)], 12, "shape", id="huge strides"
        ),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(
    rows: list[TensorMeta], nbytes: int, field: str
) -> None:
    block = a_block()
    before, memory = block.dump(), peak_kib()
    with pytest.raises(WireError) as caught:
        block.load(StateMeta(tensors=tuple(rows)), memoryview(bytes(nbytes)))
    assert caught.value.field == field
    assert block.dump() == before
    assert peak_kib() - memory < HUGE / 1024 / 2, "memory was taken before the check"


def peak_kib() -> int:
    """The most address space that this process has had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmPeak"].split()[0])


@pytest.mark.parametrize("name", ["params", "no_such_option"])
def test_an_option_that_the_group_does_not_have_is_refused(name: str) -> None:
    block = a_block()
    before = block.dump()
    with pytest.raises(WireError) as caught:
        block.load(StateMeta(tensors=(VALUE,), hyper={name: []}), memoryview(bytes(12)))
    assert caught.value.field == "hyper"
    with pytest.raises(WireError):
        block.step(torch.ones(3), {name: []})
    assert block.dump() == before


EXTENTS = st.one_of(st.integers(-2, 4), st.sampled_from([2**31, 2**62, 2**63 - 1, 2**64 - 1]))
ROWS = st.builds(
    TensorMeta,
    key=st.sampled_from(["value", "value", "exp_avg", ""]),
    dtype=st.sampled_from(["float32", "float32", "int64", "bool", "float", "Tensor", "\x00"]),
    shape=st.one_of(st.just((3,)), st.lists(EXTENTS, max_size=4).map(tuple)),
    nbytes=st.one_of(st.just(12), st.integers(-8, 32)),
)


def fitting(row: TensorMeta) -> TensorMeta:
    """The row with the bytes that its shape says, where these are few."""
    elements = torch.Size(row.shape).numel() if max(row.shape, default=0) < 5 else 0
    return msgspec.structs.replace(row, nbytes=4 * elements)


@settings(max_examples=300, deadline=None)
@given(
    rows=st.lists(st.one_of(ROWS, ROWS.map(fitting)), max_size=3).map(tuple),
    payload=st.one_of(st.just(bytes(12)), st.binary(max_size=40)),
)
def test_whatever_is_sent_is_loaded_whole_or_refused_whole(
    rows: tuple[TensorMeta, ...], payload: bytes
) -> None:
    block = a_block()
    before = block.dump()
    try:
        block.load(StateMeta(tensors=rows), memoryview(payload))
    except WireError:
        assert block.dump() == before
    else:
        meta, dumped = block.dump()
        assert dumped[:12] in payload
        assert {row.key for row in meta.tensors} == {row.key for row in rows}


class Remembers(optim.SGD):
    """Keeps its past in a list, which no block can carry."""

    def step(self, closure: Any = None) -> Any:
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("past", []).append(parameter.clone())
        return super().step(closure)


def test_an_optimizer_whose_state_is_a_list_is_refused_by_name() -> None:
    block = a_block(TorchOptimizer(Remembers), lr=0.1)
    with pytest.raises(PluginError, match="Remembers: its state past is a list") as caught:
        block.dump()
    assert caught.value.field == "past"
