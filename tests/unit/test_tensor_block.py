"""A block's optimizer is the local one, bit for bit, wherever the block moves meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from elasticps.worker.optimizer_state import by_parameter
from tests.support.blocks import BlockServers

STEPS = 50
SHAPES = [(1,), (7,), (1023,), (1025,), (4097,), (33, 65), (3, 5, 70), (), (1, 9), (9, 1)]
ODD_BYTES = 4124
"""1031 float32 elements, a prime: no block of it ends where a vector register does."""

Case = tuple[Optimizer, type[optim.Optimizer], dict[str, Any]]


def case(plugin: Optimizer, cls: type[optim.Optimizer], **options: Any) -> Any:
    said = "-".join(f"{key}={item}" for key, item in options.items())
    return pytest.param((plugin, cls, options), id=f"{cls.__name__}-{said}")


SGD = (builtin.sgd, optim.SGD)
ADAMW = (builtin.adamw, optim.AdamW)
HALF_CASES = [
    case(*SGD, lr=0.1),
    case(*SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    case(*ADAMW, lr=0.01),
    case(*ADAMW, lr=0.01, amsgrad=True, weight_decay=0.1),
]
ADAFACTOR_CASES = [
    case(builtin.adafactor, optim.Adafactor, lr=0.01),
    case(builtin.adafactor, optim.Adafactor, lr=0.01, weight_decay=0.01, d=1.5),
]
CASES = [
    *HALF_CASES,
    case(*SGD, lr=0.1, momentum=0.9, dampening=0.1),
    case(*SGD, lr=0.1, momentum=0.9, maximize=True),
    case(*SGD, lr=0.1, momentum=0.9, fused=True),
    case(builtin.adagrad, optim.Adagrad, lr=0.1),
    case(
        builtin.adagrad,
        optim.Adagrad,
        lr=0.1,
        lr_decay=0.01,
        weight_decay=0.01,
        initial_accumulator_value=0.1,
    ),
    case(builtin.rmsprop, optim.RMSprop, lr=0.01),
    case(
        builtin.rmsprop, optim.RMSprop, lr=0.01, momentum=0.9, centered=True, weight_decay=0.01
    ),
    case(builtin.adam, optim.Adam, lr=0.01, foreach=True),
    case(builtin.adam, optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.01),
    case(*ADAMW, lr=0.01, fused=True),
    *ADAFACTOR_CASES,
]
ALL_KINDS = pytest.mark.parametrize("kind", CASES)


class Twins:
    """A local optimizer on whole parameters beside the same one on their blocks."""

    def __init__(
        self,
        kind: Case,
        *,
        shapes: list[tuple[int, ...]] = SHAPES,
        dtype: torch.dtype = torch.float32,
        block_bytes: int = ODD_BYTES,
        second_group: dict[str, Any] | None = None,
    ) -> None:
        plugin, cls, options = kind
        self._random = torch.Generator().manual_seed(7)
        self.parameters = [self._normal(shape, dtype) for shape in shapes]
        half = len(shapes) // 2 if second_group else len(shapes)
        groups = [{"params": self.parameters[:half]}]
        if second_group:
            groups.append({"params": self.parameters[half:], **second_group})
        self.local = cls(groups, **options)
        self.servers = BlockServers(
            [(f"p{index}", item) for index, item in enumerate(self.parameters)],
            self.local,
            plugin,
            options,
            block_bytes=block_bytes,
        )

    def _normal(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self._random).to(dtype)

    def step(self, missing: Callable[[int], bool] = lambda _: False) -> None:
        """Both take a step with the same gradients; ``missing`` says which have none."""
        for index, parameter in enumerate(self.parameters):
            gradient = self._normal(tuple(parameter.shape), parameter.dtype)
            parameter.grad = None if missing(index) else gradient
        self.servers.step(self.servers.changed_options(self.local))
        self.local.step()

    def run(self, steps: int = STEPS) -> None:
        for number in range(steps):
            self.step()
            assert not self.servers.differing(), f"after step {number + 1}"

    def assert_same_state(self) -> None:
        """The blocks' optimizer state, put together, is the local optimizer's."""
        assembled = by_parameter(self.servers.memory, self.servers.fetch_states())
        for parameter in self.parameters:
            mine, its = assembled.get(parameter, {}), self.local.state.get(parameter, {})
            assert mine.keys() == its.keys()
            for key, item in its.items():
                assert torch.equal(torch.as_tensor(mine[key]), torch.as_tensor(item)), key


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As a shard server runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- equal to the local optimizer ---------------------------------------------------------------


@ALL_KINDS
def test_blocks_equal_the_whole_parameter_bit_for_bit(kind: Case) -> None:
    twins = Twins(kind)
    twins.run()
    twins.assert_same_state()


@pytest.mark.parametrize("kind", HALF_CASES)
def test_blocks_equal_the_whole_parameter_in_float64(kind: Case) -> None:
    twins = Twins(kind, dtype=torch.float64)
    twins.run()
    twins.assert_same_state()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", [*HALF_CASES, *ADAFACTOR_CASES])
def test_half_precision_equals_where_cuts_are_whole_vectors(kind: Case, dtype: torch.dtype) -> None:
    # Torch rounds alpha * x once more in the tail of a vector loop than in its body.
    twins = Twins(kind, dtype=dtype, block_bytes=4096)
    twins.run()
    twins.assert_same_state()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parameters_that_torch_would_share_among_threads_are_equal(dtype: torch.dtype) -> None:
    kind = (builtin.sgd, optim.SGD, {"lr": 0.1, "momentum": 0.9})
    Twins(kind, shapes=[(70001,), (257, 130)], dtype=dtype, block_bytes=4096).run(5)


@ALL_KINDS
def test_changed_options_reach_the_blocks_with_the_next_step(kind: Case) -> None:
    twins = Twins(kind)
    twins.run(5)
    for group in twins.local.param_groups:
        group["lr"] *= 0.3
        group["weight_decay"] = 0.05
        if "betas" in group:
            group["betas"] = (0.8, 0.99)
    twins.run(5)
    for group in twins.local.param_groups:
        group["lr"] /= 0.3
    twins.run(5)
    twins.assert_same_state()


@ALL_KINDS
def test_each_param_group_keeps_its_own_options(kind: Case) -> None:
    twins = Twins(kind, second_group={"lr": 0.003, "weight_decay": 0.02})
    twins.run(5)
    twins.local.param_groups[1]["lr"] = 0.001
    twins.run(5)
    twins.assert_same_state()


@ALL_KINDS
def test_a_parameter_without_a_gradient_is_left_alone(kind: Case) -> None:
    twins = Twins(kind)
    for number in range(15):
        twins.step(lambda index, number=number: index == 0 or (number + index) % 3 == 0)
        assert not twins.servers.differing()
    twins.assert_same_state()


# -- moving -------------------------------------------------------------------------------------


@ALL_KINDS
def test_a_moved_block_has_the_same_future(kind: Case) -> None:
    twins = Twins(kind)
    twins.servers.migrate()
    twins.run(1)
    twins.servers.migrate()
    twins.local.param_groups[0]["lr"] *= 0.5
    twins.run(10)
    twins.servers.migrate()
    twins.run(STEPS - 11)
    twins.assert_same_state()


@ALL_KINDS
def test_a_dump_loads_and_dumps_as_the_same_bytes(kind: Case) -> None:
    twins = Twins(kind)
    twins.run(3)
    before = twins.servers.fetch_states()
    twins.servers.migrate()
    assert [(a, bytes(b)) for a, b in twins.servers.fetch_states()] == [
        (a, bytes(b)) for a, b in before
    ]


@ALL_KINDS
def test_a_load_leaves_nothing_of_what_the_block_held(kind: Case) -> None:
    twins, diverged = Twins(kind), Twins(kind)
    diverged.run(3)
    diverged.servers.give_states(twins.servers.fetch_states())
    twins.servers.blocks = diverged.servers.blocks
    twins.run(3)
    twins.assert_same_state()


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.lists(
        st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=3
    ),
    kind=st.sampled_from([item.values[0] for item in CASES]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    block_bytes=st.integers(4096, 9000),
    moves=st.lists(st.booleans(), max_size=4),
)
def test_any_model_moved_at_any_time_equals_the_local_run(
    shapes: list[tuple[int, ...]],
    kind: Case,
    dtype: torch.dtype,
    block_bytes: int,
    moves: list[bool],
) -> None:
    twins = Twins(kind, shapes=shapes, dtype=dtype, block_bytes=block_bytes)
    for move in moves:
        if move:
            twins.servers.migrate()
        twins.run(1)
    twins.assert_same_state()


def test_held_bytes_count_value_and_optimizer_state() -> None:
    twins = Twins((*ADAMW, {"lr": 0.1}), shapes=[(100,)])
    block = twins.servers.blocks[0]
    assert (block.nbytes, block.nbytes_held) == (400, 400)
    twins.step()
    assert (block.nbytes, block.nbytes_held) == (400, 3 * 400 + 4)


# -- what cannot be loaded ----------------------------------------------------------------------


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
    status = dict(
        line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines()
    )
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
    except WireError as error:
        assert error.field
        assert block.dump() == before
    else:
        meta, dumped = block.dump()
        assert dumped[:12] in payload
        assert {row.key for row in meta.tensors} >= {row.key for row in rows}


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
