"""Lion does what its paper's Algorithm 2 says, block by block as on the whole, and is found."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any

import numpy as np
import pytest
import torch
from elasticps_lion import Lion, plugin

from elasticps import Optimizer

OPTIONS: list[dict[str, Any]] = [
    {},
    {"lr": 0.01, "weight_decay": 0.1},
    {"lr": 0.01, "betas": (0.95, 0.98), "weight_decay": 1.0},
    {"lr": 0.01, "betas": (0.0, 0.0)},
]


def gradients(shape: tuple[int, ...], steps: int = 20) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(steps)]


def algorithm_2(
    theta: np.ndarray[Any, Any],
    steps: list[np.ndarray[Any, Any]],
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> np.ndarray[Any, Any]:
    """The paper's pseudocode, line by line."""
    beta1, beta2 = betas
    m = np.zeros_like(theta)
    for g in steps:
        c = beta1 * m + (1 - beta1) * g
        theta = theta - lr * (np.sign(c) + weight_decay * theta)
        m = beta2 * m + (1 - beta2) * g
    return theta


def trained(
    value: torch.Tensor, steps: list[torch.Tensor | None], options: dict[str, Any]
) -> torch.Tensor:
    """``value`` after a step of the plugin's optimizer for each gradient."""
    parameter = value.clone()
    optimizer = plugin.create([{"params": [parameter]}], options)
    for gradient in steps:
        parameter.grad = gradient
        optimizer.step()
    return parameter


@pytest.mark.parametrize("options", OPTIONS)
def test_steps_are_those_of_the_paper(options: dict[str, Any]) -> None:
    start, *steps = gradients((5, 7))
    wanted = algorithm_2(start.numpy(), [step.numpy() for step in steps], **options)
    np.testing.assert_allclose(trained(start, [*steps], options).numpy(), wanted, rtol=1e-12)


def test_maximize_climbs_where_the_default_descends() -> None:
    start, *steps = gradients((9,))
    climbed = trained(start, [-step for step in steps], {"lr": 0.01, "maximize": True})
    assert torch.equal(climbed, trained(start, [*steps], {"lr": 0.01}))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("cut", [1, 7, 64, 1000])
def test_pieces_are_updated_as_the_whole_is_bit_for_bit(cut: int, options: dict[str, Any]) -> None:
    start, *steps = (item.float() for item in gradients((1025,)))
    whole = trained(start, [*steps], options)
    pieces = [
        trained(piece, [step.split(cut)[index] for step in steps], options)
        for index, piece in enumerate(start.split(cut)[:20])
    ]
    together = torch.cat(pieces)
    assert torch.equal(together, whole[: len(together)])


def test_a_parameter_without_a_gradient_is_left_alone() -> None:
    start, *steps = gradients((3,))
    assert torch.equal(trained(start, [None, None], {"weight_decay": 1.0}), start)
    assert torch.equal(trained(start, [None, *steps, None], {}), trained(start, [*steps], {}))


def test_gradients_are_not_written_to() -> None:
    start, gradient = gradients((3,), steps=2)
    before = gradient.clone()
    trained(start, [gradient, gradient], {"maximize": True, "weight_decay": 0.1})
    assert torch.equal(gradient, before)


def test_state_dict_resumes_where_it_was_taken() -> None:
    start, *steps = gradients((4,))
    first, second = start.clone(), start.clone()
    one, other = Lion([first]), Lion([second], lr=0.5)
    for number, gradient in enumerate(steps):
        first.grad = gradient
        one.step()
        if number == 9:
            second.copy_(first)
            other.load_state_dict(one.state_dict())
        elif number > 9:
            second.grad = gradient
            other.step()
    assert torch.equal(first, second)


def test_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([parameter], lr=0.25)

    def closure() -> torch.Tensor:
        loss = parameter.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert parameter.tolist() == [0.75, 0.75]


@pytest.mark.parametrize(
    "options", [{"lr": -1.0}, {"betas": (1.0, 0.9)}, {"betas": (0.9, -0.1)}, {"weight_decay": -1.0}]
)
def test_an_option_out_of_range_is_named(options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Lion([torch.zeros(1)], **options)


def test_the_entry_point_is_found_and_loads() -> None:
    (found,) = entry_points(group="elasticps.optimizers", name="lion")
    assert found.dist is not None
    assert found.dist.name == "elasticps-lion"
    loaded = found.load()
    assert loaded is plugin
    assert isinstance(loaded, Optimizer)
    assert loaded.elementwise
