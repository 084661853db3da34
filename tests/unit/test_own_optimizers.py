"""The optimizers that torch lacks do what their papers' algorithms say, line by line in numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from elasticps.optimizers.ftrl import Ftrl
from elasticps.optimizers.lamb import Lamb
from elasticps.optimizers.lars import Lars

Array = np.ndarray[Any, Any]
STEPS = 30


def tensors(shape: tuple[int, ...], count: int = STEPS + 1) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(5)
    return [torch.randn(shape, generator=random, dtype=torch.float64) for _ in range(count)]


def lamb(
    x: Array,
    steps: list[Array],
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    *,
    adapt: bool = True,
    bias_correction: bool = True,
) -> Array:
    """You et al. 2020, Algorithm 2, for one layer."""
    m, v = np.zeros_like(x), np.zeros_like(x)
    for t, g in enumerate(steps, start=1):
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        corrected_m = m / (1 - betas[0] ** t) if bias_correction else m
        corrected_v = v / (1 - betas[1] ** t) if bias_correction else v
        r = corrected_m / (np.sqrt(corrected_v) + eps)
        step = r + weight_decay * x
        phi = np.linalg.norm(x.ravel()) / np.linalg.norm(step.ravel()) if adapt else 1.0
        x = x - lr * phi * step
    return x


def lars(
    w: Array,
    steps: list[Array],
    lr: float = 0.1,
    momentum: float = 0.9,
    weight_decay: float = 0.0005,
    trust_coefficient: float = 0.001,
    *,
    adapt: bool = True,
) -> Array:
    """You et al. 2017, Algorithm 1, for one layer."""
    v = np.zeros_like(w)
    for g in steps:
        norm, other = np.linalg.norm(w.ravel()), np.linalg.norm(g.ravel())
        scale = trust_coefficient * norm / (other + weight_decay * norm) if adapt else 1.0
        v = momentum * v + lr * scale * (g + weight_decay * w)
        w = w - v
    return w


def ftrl(
    w: Array,
    steps: list[Array],
    lr: float = 0.1,
    beta: float = 1.0,
    l1: float = 0.0,
    l2: float = 0.0,
) -> Array:
    """McMahan et al. 2013, Algorithm 1; ``w`` is zero, as there."""
    z, n = np.zeros_like(w), np.zeros_like(w)
    for g in steps:
        sigma = (np.sqrt(n + g**2) - np.sqrt(n)) / lr
        z = z + g - sigma * w
        n = n + g**2
        dense = -(z - np.sign(z) * l1) / ((beta + np.sqrt(n)) / lr + l2)
        w = np.where(np.abs(z) <= l1, 0.0, dense)
    return w


Formula = Callable[..., Array]
CASES: list[tuple[type[torch.optim.Optimizer], Formula, dict[str, Any]]] = [
    (Lamb, lamb, {}),
    (Lamb, lamb, {"lr": 0.05, "betas": (0.8, 0.99), "weight_decay": 0.3}),
    (Lamb, lamb, {"lr": 0.01, "bias_correction": False, "eps": 1e-3}),
    (Lamb, lamb, {"lr": 0.01, "adapt": False, "weight_decay": 0.0}),
    (Lars, lars, {}),
    (Lars, lars, {"lr": 3.0, "momentum": 0.5, "weight_decay": 0.1, "trust_coefficient": 0.02}),
    (Lars, lars, {"lr": 0.01, "adapt": False}),
    (Ftrl, ftrl, {}),
    (Ftrl, ftrl, {"lr": 0.5, "beta": 0.3, "l1": 1.5, "l2": 0.2}),
]
ALL_CASES = pytest.mark.parametrize(("cls", "formula", "options"), CASES)


def start_of(cls: type[torch.optim.Optimizer], shape: tuple[int, ...]) -> torch.Tensor:
    first = tensors(shape)[0]
    return torch.zeros_like(first) if cls is Ftrl else first


def trained(
    cls: Callable[..., torch.optim.Optimizer],
    start: torch.Tensor,
    steps: list[torch.Tensor],
    **options: Any,
) -> torch.Tensor:
    parameter = start.clone()
    optimizer = cls([parameter], **options)
    for gradient in steps:
        parameter.grad = gradient
        optimizer.step()
    return parameter


@ALL_CASES
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 4), (11,)])
def test_steps_are_those_of_the_paper(
    cls: type[torch.optim.Optimizer],
    formula: Formula,
    options: dict[str, Any],
    shape: tuple[int, ...],
) -> None:
    start, steps = start_of(cls, shape), tensors(shape)[1:]
    wanted = formula(start.numpy(), [step.numpy() for step in steps], **options)
    found = trained(cls, start, steps, **options)
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-12)


@ALL_CASES
def test_maximize_climbs_where_the_default_descends(
    cls: type[torch.optim.Optimizer], formula: Formula, options: dict[str, Any]
) -> None:
    start, steps = start_of(cls, (9,)), tensors((9,))[1:]
    climbed = trained(cls, start, [-step for step in steps], maximize=True, **options)
    assert torch.equal(climbed, trained(cls, start, steps, **options))


@ALL_CASES
def test_gradients_are_not_written_to(
    cls: type[torch.optim.Optimizer], formula: Formula, options: dict[str, Any]
) -> None:
    gradient = tensors((9,))[1]
    before = gradient.clone()
    trained(cls, start_of(cls, (9,)), [gradient, gradient], **options)
    assert torch.equal(gradient, before)


@ALL_CASES
def test_state_dict_resumes_where_it_was_taken(
    cls: Any, formula: Formula, options: dict[str, Any]
) -> None:
    first, steps = start_of(cls, (4, 3)), tensors((4, 3))[1:]
    one = cls([first], **options)
    for number, gradient in enumerate(steps):
        if number == 10:
            second = first.clone()
            other = cls([second], lr=0.7)
            other.load_state_dict(copy.deepcopy(one.state_dict()))
        first.grad = gradient
        one.step()
        if number >= 10:
            second.grad = gradient
            other.step()
    assert torch.equal(first, second)


@pytest.mark.parametrize("cls", [Lamb, Lars])
def test_zeros_can_be_left_and_zero_gradients_move_nothing_by_themselves(cls: Any) -> None:
    zeros, (step, *_) = torch.zeros(6, dtype=torch.float64), tensors((6,))
    assert trained(cls, zeros, [step], lr=0.1).abs().min() > 0
    assert torch.equal(trained(cls, zeros, [zeros, zeros], lr=0.1), zeros)


def test_ftrl_makes_exact_zeros_of_what_stays_below_l1() -> None:
    steps = [torch.tensor([0.01, 5.0, -0.01, -5.0])] * 20
    found = trained(Ftrl, torch.zeros(4), steps, l1=1.0)
    assert found[[0, 2]].tolist() == [0.0, 0.0]
    assert found[1] < 0 < found[3]


def test_ftrl_without_regularization_is_a_descent_from_wherever_it_begins() -> None:
    start, *steps = tensors((7,))
    w, n = start.numpy().copy(), np.zeros(7)
    for number, g in enumerate(step.numpy() for step in steps):
        n = n + g**2
        w = w - (0.2 if number < 10 else 0.02) * g / (1.0 + np.sqrt(n))
    parameter = start.clone()
    optimizer = Ftrl([parameter], lr=0.2)
    for number, step in enumerate(steps):
        optimizer.param_groups[0]["lr"] = 0.2 if number < 10 else 0.02
        parameter.grad = step
        optimizer.step()
    np.testing.assert_allclose(parameter.numpy(), w, rtol=1e-9)


@pytest.mark.parametrize("l1", [0.0, 0.4])
def test_ftrl_begins_at_the_value_that_it_is_given(l1: float) -> None:
    start = tensors((7,))[0]
    found = trained(Ftrl, start, [torch.zeros_like(start)], l1=l1, l2=0.3)
    torch.testing.assert_close(found, start, rtol=1e-12, atol=0)


def test_ftrl_at_a_rate_of_zero_stays_and_learns_nothing() -> None:
    start, *steps = tensors((7,))
    parameter = start.clone()
    optimizer = Ftrl([parameter], lr=0.0)
    for number, step in enumerate(steps):
        optimizer.param_groups[0]["lr"] = 0.1 if number >= 5 else 0.0
        parameter.grad = step
        optimizer.step()
        assert number >= 5 or torch.equal(parameter, start)
    assert torch.equal(parameter, trained(Ftrl, start, steps[5:], lr=0.1))


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (Lamb, {"lr": -1.0}),
        (Lamb, {"betas": (1.0, 0.9)}),
        (Lamb, {"eps": float("nan")}),
        (Lars, {"momentum": -0.1}),
        (Lars, {"trust_coefficient": -1.0}),
        (Ftrl, {"beta": 0.0}),
        (Ftrl, {"l1": -1.0}),
    ],
)
def test_an_option_out_of_range_is_named(cls: Any, options: dict[str, Any]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        cls([torch.zeros(1)], **options)


@pytest.mark.parametrize("cls", [Lamb, Lars, Ftrl])
def test_sparse_gradients_are_refused(cls: Any) -> None:
    parameter = torch.zeros(3)
    parameter.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match=cls.__name__):
        cls([parameter]).step()


def test_closure_is_evaluated_with_gradients_and_its_loss_returned() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Lars([parameter], adapt=False, lr=0.25, weight_decay=0.0)

    def closure() -> torch.Tensor:
        loss = parameter.sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure).item() == 2.0
    assert parameter.tolist() == [0.75, 0.75]
