"""A large block that is stepped in pieces comes out as if it had been stepped as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
import torch
from torch import nn

from elasticps.api.optimizer import Optimizer
from elasticps.api.plugins import OPTIMIZERS, load
from elasticps.core.blocks import partition
from elasticps.server.compute import ComputeThreads
from elasticps.server.gradient_mean import Mean
from elasticps.server.piecewise import PIECE_NUMEL, PIECEWISE
from elasticps.server.staging import Staged, mean
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.tensors import bytes_of
from elasticps.worker.parameters import describe

NUMEL = PIECE_NUMEL + 777
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "fused": True}),
    ("adam", {"lr": 1e-2, "amsgrad": True}),
    ("adamw", {"lr": 1e-2}),
    ("adamw", {"lr": 1e-2, "fused": True}),
    ("adamw", {"lr": 1e-2, "foreach": True}),
    ("adagrad", {"lr": 1e-2, "initial_accumulator_value": 0.1}),
    ("rmsprop", {"lr": 1e-2, "momentum": 0.9, "centered": True}),
    ("adadelta", {"weight_decay": 0.1}),
    ("adamax", {"lr": 1e-2}),
    ("nadam", {"lr": 1e-2}),
    ("radam", {"lr": 1e-2}),
    ("rprop", {"lr": 1e-2}),
    ("asgd", {"lr": 1e-2}),
]


def values(seed: int, numel: int = NUMEL) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[ComputeThreads]:
    """One for all of a block's pieces, or more than there are."""
    with closing(ComputeThreads(request.param)) as made:
        yield made


def block_of(
    name: str, options: dict[str, Any], threads: ComputeThreads | None = None
) -> tuple[TensorBlock, torch.optim.Optimizer]:
    """A block, and the optimizer that steps the same parameter as a whole."""
    plugin = load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]
    parameter = nn.Parameter(values(1))
    local = plugin.create([{"params": [parameter]}], options)
    model = describe(
        [("p", parameter)],
        local.param_groups,
        optimizer=name,
        options=options,
        elementwise=plugin.elementwise,
        block_bytes=4 << 20,
    )
    (block,) = partition(model)
    made = TensorBlock(block, model.parameters[0], model, plugin, threads=threads)
    made.value.copy_(parameter.detach())
    return made, local


@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_step_in_pieces_is_that_of_the_whole_to_the_bit(
    name: str, options: dict[str, Any], threads: ComputeThreads
) -> None:
    made, local = block_of(name, options, threads)
    assert made.sums_pieces
    (parameter,) = local.param_groups[0]["params"]
    for step in range(4):
        local.param_groups[0]["lr"] = 0.01 * (step + 1)
        if step == 2:  # a block that moved here in between is like any other
            meta, payload = made.dump()
            made.load(meta, memoryview(payload))
        if step == 3:  # nor does one mind who reads it
            reader = made.value_bytes()
            before = bytes(reader)
        parameter.grad = values(10 + step)
        local.step()
        into = torch.empty(made.nbytes, dtype=torch.uint8)  # for which pieces are best
        assert made.step(values(10 + step), {"lr": 0.01 * (step + 1)}, [into])
    assert bytes(reader) == before
    assert torch.equal(made.value, parameter.detach())
    state, own = local.state[parameter], made.optimizer.state.get(made.value, {})
    assert state.keys() == own.keys()
    for key, item in state.items():
        assert item is None if own[key] is None else torch.equal(item, own[key])


def test_every_optimizer_that_steps_in_pieces_is_held_against_the_whole() -> None:
    assert {type(block_of(*case)[1]) for case in CASES} == PIECEWISE


def test_an_option_that_brings_a_state_later_brings_it_to_all_pieces(
    threads: ComputeThreads,
) -> None:
    made, local = block_of("sgd", {"lr": 0.1}, threads)
    (parameter,) = local.param_groups[0]["params"]
    for step, momentum in enumerate((0.0, 0.9, 0.9)):
        local.param_groups[0]["momentum"] = momentum
        parameter.grad = values(step)
        local.step()
        made.step(values(step), {"momentum": momentum})
    assert torch.equal(made.value, parameter.detach())
    assert made.nbytes_held == 2 * made.nbytes


def test_what_a_plugin_has_hooked_to_the_step_is_done_to_each_piece(
    threads: ComputeThreads,
) -> None:
    def clamp(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.detach().clamp_(-0.5, 0.5)

    made, local = block_of("sgd", {"lr": 0.1}, threads)
    (parameter,) = local.param_groups[0]["params"]
    for optimizer in (made.optimizer, local):
        optimizer.register_step_post_hook(clamp)
    parameter.grad = values(2)
    local.step()
    made.step(values(2), {})
    assert made.value.abs().max() == 0.5
    assert torch.equal(made.value, parameter.detach())


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_gradients_that_are_summed_where_they_are_applied_give_the_bits_of_their_mean(
    scale: float, threads: ComputeThreads
) -> None:
    made, local = block_of("adamw", {"lr": 1e-2}, threads)
    parts = [(values(2), 3.0), (values(3), 1.0), (values(4), 0.5)]
    (parameter,) = local.param_groups[0]["params"]
    staged = [Staged(gradient.clone(), weight, {}) for gradient, weight in parts]
    whole = mean(staged)
    assert isinstance(whole, torch.Tensor)
    parameter.grad = whole.mul(scale) if scale != 1.0 else whole
    local.step()
    into = torch.zeros(made.nbytes, dtype=torch.uint8)
    assert made.step(Mean(parts, 4.5, scale), {}, [into])
    assert torch.equal(made.value, parameter.detach())
    assert bytes_of(into) == bytes_of(made.value)
    made.write_value(into.fill_(0))
    assert bytes_of(into) == bytes_of(made.value)
    assert all(torch.equal(gradient, values(2 + at)) for at, (gradient, _) in enumerate(parts))


@pytest.mark.parametrize(("lent", "kept"), [(True, True), (True, False), (False, False)])
def test_gradients_stay_apart_only_where_their_workers_keep_them(lent: bool, kept: bool) -> None:
    staged = [Staged(values(at, 8), 1.0, {}, lent=lent, kept=kept) for at in (1, 2)]
    assert isinstance(mean(staged, apart=True), Mean) == kept
    one_of_a_socket = [*staged, Staged(values(3, 8), 1.0, {})]
    assert isinstance(mean(one_of_a_socket, apart=True), torch.Tensor)
