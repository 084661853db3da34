"""What a gradient is scaled by: what torch scales it by, given its parts' norms."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.utils import clip_grad_norm_

from elasticps.errors import UsageError
from elasticps.server.staging import PreparedGradient
from elasticps.worker.clipping import Clipping

INF, NAN = math.inf, math.nan


def gradients(*first: float) -> list[torch.Tensor]:
    """Two parameters' gradients; ``first`` are the first elements of one."""
    random = torch.Generator().manual_seed(3)
    one, other = (torch.randn(size, generator=random) for size in ((7, 11), (5,)))
    one[0, : len(first)] = torch.tensor(first)
    return [one, other]


def clipped_by_torch(items: list[torch.Tensor], bound: float) -> tuple[list[torch.Tensor], float]:
    parameters = [torch.nn.Parameter(torch.zeros_like(item)) for item in items]
    for parameter, item in zip(parameters, items, strict=True):
        parameter.grad = item.clone()
    norm = float(clip_grad_norm_(parameters, bound))
    return [parameter.grad for parameter in parameters if parameter.grad is not None], norm


@pytest.mark.parametrize("bound", [0.5, 3.0, 1e3, INF])
@pytest.mark.parametrize(
    "first", [(), (0.0,), (1e30,), (INF,), (-INF, 2.0), (NAN,), (INF, NAN)], ids=str
)
def test_the_scale_is_that_of_torch_for_any_norm(first: tuple[float, ...], bound: float) -> None:
    given = gradients(*first)
    expected, norm = clipped_by_torch(given, bound)
    parts = [part for item in given for part in item.flatten().split(30)]
    clipping = Clipping(bound)
    scale = clipping.scale([PreparedGradient(part, {}).norm for part in parts], bound)
    if first == (1e30,):  # single precision cannot square it: torch's norm is infinite
        assert clipping.norm == pytest.approx(1e30)
        return
    assert clipping.norm == pytest.approx(norm, rel=1e-6, nan_ok=True)
    for mine, its in zip(given, expected, strict=True):
        torch.testing.assert_close(mine * scale, its, rtol=1e-6, atol=1e-7, equal_nan=True)


def test_a_round_without_any_gradient_is_not_scaled() -> None:
    assert Clipping(1.0).scale([PreparedGradient(None, {}).norm] * 3, 1.0) == 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_norm_is_exact_whatever_the_gradients_precision(dtype: torch.dtype) -> None:
    given = (torch.randn(100_000, generator=torch.Generator().manual_seed(1)) * 300).to(dtype)
    exact = float(given.double().pow(2).sum().sqrt())
    assert PreparedGradient(given, {}).norm == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("bound", [0.0, -1.0, NAN])
def test_a_bound_that_is_not_above_zero_is_refused_by_name(bound: float) -> None:
    with pytest.raises(UsageError) as caught:
        Clipping(bound)
    assert caught.value.field == "clip_grad_norm"
    clipping = Clipping(1)
    with pytest.raises(UsageError):
        clipping.bound = bound
    assert clipping.bound == 1.0
