"""A block's optimizer is the local one, bit for bit, wherever the block moves meanwhile."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import optim

from elasticps.api.optimizer import Optimizer
from elasticps.optimizers import builtin
from elasticps.optimizers.ftrl import Ftrl
from elasticps.optimizers.lamb import Lamb
from elasticps.optimizers.lars import Lars
from elasticps.testing.blocks import BlockServers
from elasticps.worker.optimizer_state import by_parameter

SHAPES = [(1,), (7,), (1023,), (1025,), (4097,), (33, 65), (3, 5, 70), (), (1, 9), (9, 1)]
ODD_BYTES = 4124
"""1031 float32 elements, a prime: no block of it ends where a vector register does."""

Case = tuple[Optimizer, type[optim.Optimizer], dict[str, Any]]


def case(plugin: Optimizer, cls: type[optim.Optimizer], **options: Any) -> Any:
    said = "-".join(f"{key}={item}" for key, item in options.items())
    return pytest.param((plugin, cls, options), id=f"{cls.__name__}-{said}")


SGD = (builtin.sgd, optim.SGD)
ADAMW = (builtin.adamw, optim.AdamW)
CASES = [
    case(*SGD, lr=0.1),
    case(*SGD, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    case(*ADAMW, lr=0.01),
    case(*ADAMW, lr=0.01, amsgrad=True, weight_decay=0.1),
    case(*SGD, lr=0.1, momentum=0.9, dampening=0.1),
    case(*SGD, lr=0.1, momentum=0.9, maximize=True),
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
    case(builtin.rmsprop, optim.RMSprop, lr=0.01, momentum=0.9, centered=True, weight_decay=0.01),
    case(builtin.adam, optim.Adam, lr=0.01, foreach=True),
    case(builtin.adam, optim.Adam, lr=0.01, amsgrad=True, weight_decay=0.01),
    case(builtin.adadelta, optim.Adadelta, lr=0.5, weight_decay=0.01),
    case(builtin.adamax, optim.Adamax, lr=0.01, weight_decay=0.01),
    case(builtin.asgd, optim.ASGD, lr=0.01, t0=5, weight_decay=0.01),
    case(builtin.nadam, optim.NAdam, lr=0.01, weight_decay=0.01),
    case(builtin.nadam, optim.NAdam, lr=0.01, weight_decay=0.01, decoupled_weight_decay=True),
    case(builtin.radam, optim.RAdam, lr=0.01, weight_decay=0.01),
    case(builtin.rprop, optim.Rprop, lr=0.01),
    case(builtin.ftrl, Ftrl, lr=0.05, l1=0.001, l2=0.01),
    case(builtin.lamb, Lamb, lr=0.01),
    case(builtin.lars, Lars, lr=0.5),
    case(builtin.adafactor, optim.Adafactor, lr=0.01),
    case(builtin.adafactor, optim.Adafactor, lr=0.01, weight_decay=0.01, d=1.5),
]
FUSED_CASES = [
    case(*SGD, lr=0.1, momentum=0.9, fused=True),
    case(builtin.adagrad, optim.Adagrad, lr=0.1, fused=True),
    case(*ADAMW, lr=0.01, weight_decay=0.1, fused=True),
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

    def step(self, missing: Collection[int] = ()) -> None:
        """Both take a step with the same gradients; those ``missing`` have none."""
        for index, parameter in enumerate(self.parameters):
            gradient = self._normal(tuple(parameter.shape), parameter.dtype)
            parameter.grad = None if index in missing else gradient
        self.servers.step(self.servers.changed_options(self.local))
        self.local.step()

    def run(self, steps: int) -> None:
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
                found, wanted = torch.as_tensor(mine[key]), torch.as_tensor(item)
                # In float16 a second moment may vanish, and 0 / 0 is no number.
                assert torch.allclose(found, wanted, rtol=0, atol=0, equal_nan=True), key


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """As a shard server runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# -- equal to the local optimizer ---------------------------------------------------------------


@ALL_KINDS
def test_blocks_equal_the_whole_parameter_bit_for_bit(kind: Case) -> None:
    twins = Twins(kind)
    twins.run(50)
    twins.assert_same_state()


@pytest.mark.parametrize("kind", CASES)
def test_blocks_equal_the_whole_parameter_in_float64(kind: Case) -> None:
    twins = Twins(kind, dtype=torch.float64)
    twins.run(20)
    twins.assert_same_state()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_half_precision_equals_where_cuts_are_whole_vectors(kind: Case, dtype: torch.dtype) -> None:
    # In the tail of a vector loop torch rounds alpha * x once more than in its body.
    twins = Twins(kind, dtype=dtype, block_bytes=4096)
    twins.run(20)
    twins.assert_same_state()


@pytest.mark.parametrize("kind", FUSED_CASES)
def test_fused_kernels_equal_where_cuts_are_whole_vectors(kind: Case) -> None:
    twins = Twins(kind, block_bytes=4096)
    twins.run(20)
    twins.assert_same_state()


@pytest.mark.parametrize(
    ("dtype", "threads"),
    [(torch.float32, 1), (torch.float32, 2), (torch.bfloat16, 1)],
    ids=["float32", "float32-two-threads", "bfloat16"],
)
def test_a_parameter_that_threads_may_share_equals_its_blocks(
    dtype: torch.dtype, threads: int
) -> None:
    torch.set_num_threads(threads)
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
        twins.step(missing={0, number % 3, 3 + number % 5})
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
    twins.run(15)
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
    shapes=st.lists(st.lists(st.integers(1, 40), max_size=3).map(tuple), min_size=1, max_size=3),
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
