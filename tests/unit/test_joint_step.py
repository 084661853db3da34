"""Small blocks that are stepped together come out as if each had been stepped alone."""

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
from elasticps.server.gradient_mean import Mean, wholes
from elasticps.server.joint_step import (
    JOINT,
    JOINT_BYTES,
    SMALL_BYTES,
    Due,
    is_joint,
    step_together,
)
from elasticps.server.tensor_block import TensorBlock
from elasticps.worker.parameters import describe

SHAPES = ((3,), (17,), (), (64,), (5, 7), (1025,))
LARGER = ((100, 401), (127, 999), (64,), (129, 1001), (130,))
"""Together they make more than one list."""
CASES: list[tuple[str, dict[str, Any]]] = [
    ("sgd", {"lr": 0.1}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "maximize": True}),
    ("adam", {"lr": 1e-2, "weight_decay": 0.1}),
    ("adam", {"lr": 1e-2, "amsgrad": True}),
    ("adamw", {"lr": 1e-2}),
    ("adamw", {"lr": 1e-2, "amsgrad": True, "maximize": True}),
    ("adamw", {"lr": 1e-2, "fused": True}),
    ("adam", {"lr": 1e-2, "amsgrad": True, "fused": True}),
    ("sgd", {"lr": 0.1, "momentum": 0.9, "fused": True}),
    ("adagrad", {"lr": 1e-2, "fused": True}),
    ("adagrad", {"lr": 1e-2, "lr_decay": 0.1, "weight_decay": 0.01}),
    ("rmsprop", {"lr": 1e-2, "momentum": 0.9, "centered": True}),
    ("rmsprop", {"lr": 1e-2, "weight_decay": 0.1}),
    ("adadelta", {"weight_decay": 0.1}),
    ("adamax", {"lr": 1e-2, "weight_decay": 0.1}),
    ("rprop", {"lr": 1e-2}),
]


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[ComputeThreads]:
    with closing(ComputeThreads(request.param)) as made:
        yield made


def blocks_of(
    name: str,
    options: dict[str, Any],
    dtype: torch.dtype,
    shapes: tuple[tuple[int, ...], ...] = SHAPES,
) -> list[TensorBlock]:
    plugin = load(OPTIMIZERS, name, Optimizer)  # type: ignore[type-abstract]
    parameters = [nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in shapes]
    local = plugin.create([{"params": parameters}], options)
    model = describe(
        [(f"p{index}", each) for index, each in enumerate(parameters)],
        local.param_groups,
        optimizer=name,
        options=options,
        elementwise=plugin.elementwise,
        block_bytes=SMALL_BYTES if shapes is LARGER else 4096,
    )
    made = [
        TensorBlock(block, model.parameters[block.parameter], model, plugin)
        for block in partition(model)
    ]
    random = torch.Generator().manual_seed(1)
    for each in made:
        each.value.copy_(torch.randn(each.value.shape, generator=random))
    return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "options"), CASES)
def test_a_joint_step_is_each_blocks_own_to_the_bit(
    name: str, options: dict[str, Any], dtype: torch.dtype, threads: ComputeThreads
) -> None:
    alone, joint = blocks_of(name, options, dtype), blocks_of(name, options, dtype)
    assert all(is_joint(each) for each in joint)
    random = torch.Generator().manual_seed(2)
    for step in range(4):
        hyper = {"lr": 0.01 * step} if step > 1 else {}
        grads = [torch.randn(each.value.shape, generator=random).to(dtype) for each in alone]
        if step == 2:  # a block that moved here in between is like any other
            meta, payload = joint[3].dump()
            joint[3].load(meta, memoryview(payload))
        for block, grad in zip(alone, grads, strict=True):
            block.step(grad.clone(), hyper)
        pairs = zip(joint, grads, strict=True)
        step_together([Due(block, grad.clone(), hyper) for block, grad in pairs], threads)
        assert [each.dump() for each in joint] == [each.dump() for each in alone]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.5, 3.0), (0.5, 1.0)])
@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_sums_that_are_made_together_are_each_to_the_bit(
    weights: tuple[float, ...], scale: float
) -> None:
    random = torch.Generator().manual_seed(4)
    means = [
        Mean([(torch.randn(n, generator=random), each) for each in weights], 4.5, scale)
        for n in (3, 1025, 40_001)
    ]
    together = wholes(means)
    assert all(torch.equal(one, each.whole) for one, each in zip(together, means, strict=True))


@pytest.mark.parametrize("options", [{"lr": 1e-2}, {"lr": 1e-2, "fused": True}])
def test_lists_of_unsummed_gradients_are_stepped_as_each_sum_alone(
    options: dict[str, Any], threads: ComputeThreads
) -> None:
    alone, joint = (blocks_of("adamw", options, torch.float32, LARGER) for _ in range(2))
    assert sum(each.nbytes for each in joint) > JOINT_BYTES
    random = torch.Generator().manual_seed(3)
    for _ in range(3):
        due: list[Due] = []
        for one, other in zip(alone, joint, strict=True):
            parts = [(torch.randn(one.value.shape, generator=random), 1.0 + n) for n in range(2)]
            mean = Mean(parts, 3.0, scale=0.5)
            one.step(mean.whole.clone(), {})
            due.append(Due(other, mean, {}))
        step_together(due, threads)
        assert [each.dump() for each in joint] == [each.dump() for each in alone]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_block_that_is_stepped_now_in_a_list_and_now_by_itself_counts_each_step_once(
    name: str, options: dict[str, Any]
) -> None:
    alone, mixed = (blocks_of(name, options, torch.float32, LARGER) for _ in range(2))
    random = torch.Generator().manual_seed(5)
    for is_joint_now in (False, True, False, True, True, False):
        grads = [torch.randn(each.value.shape, generator=random) for each in alone]
        for block, grad in zip(alone, grads, strict=True):
            block.step(grad.clone(), {})
        if is_joint_now:
            pairs = zip(mixed, grads, strict=True)
            step_together([Due(block, grad, {}) for block, grad in pairs], ComputeThreads())
        else:
            for block, grad in zip(mixed, grads, strict=True):
                block.step(grad, {})
        assert [each.dump() for each in mixed] == [each.dump() for each in alone]


def test_only_small_blocks_of_torchs_own_optimizers_are_stepped_together() -> None:
    tried = {type(blocks_of(*case, torch.float32)[0].optimizer) for case in CASES}
    assert tried == JOINT
    for name in ("nadam", "radam", "asgd", "ftrl"):
        assert not any(is_joint(each) for each in blocks_of(name, {}, torch.float32))
    assert not any(is_joint(each) for each in blocks_of("adam", {}, torch.bfloat16))
    chosen = blocks_of("adam", {"foreach": False}, torch.float32)
    assert all(each.nbytes <= SMALL_BYTES for each in chosen)
    assert not any(is_joint(each) for each in chosen)


@pytest.mark.parametrize("how", ["alone", "together", "load"])
def test_a_value_that_is_being_sent_stays_as_it_is(how: str) -> None:
    """And its memory is used again, not other memory, once it is sent."""
    block = blocks_of("sgd", {}, torch.float32)[1]

    def change() -> None:
        grad = torch.ones_like(block.value)
        if how == "alone":
            block.step(grad, {})
        elif how == "together":
            step_together([Due(block, grad, {})], ComputeThreads())
        else:
            meta, payload = block.dump()
            block.load(meta, memoryview(bytes(len(payload))))

    on_its_way = block.value_bytes()[4:]
    sent = bytes(on_its_way)
    change()
    assert on_its_way == sent
    assert block.value_bytes()[4:] != sent
    del on_its_way
    address = block.value.data_ptr()
    change()
    assert block.value.data_ptr() == address
