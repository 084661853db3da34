"""The transform is the textbook's, and what is left out is all that is lost."""

from __future__ import annotations

import math

import pytest
import torch
from elasticps_dct import Dct
from elasticps_dct.cosine import basis, restored, transformed

from elasticps.errors import CodecError


def noise(numel: int) -> torch.Tensor:
    return torch.randn(numel, generator=torch.Generator().manual_seed(3))


def there_and_back(codec: Dct, gradient: torch.Tensor) -> torch.Tensor:
    return codec.decode(memoryview(codec.encode(gradient, 0)), gradient.numel())


@pytest.mark.parametrize("length", [1, 2, 7, 64, 256])
def test_transform_is_the_textbooks_and_its_own_inverse_transposed(length: int) -> None:
    row = noise(length)
    wanted = [
        math.sqrt((1 if k == 0 else 2) / length)
        * sum(float(x) * math.cos(math.pi / length * (n + 0.5) * k) for n, x in enumerate(row))
        for k in range(length)
    ]
    torch.testing.assert_close(
        transformed(row[None])[0], torch.tensor(wanted), atol=1e-4, rtol=1e-4
    )
    torch.testing.assert_close(
        basis(length) @ basis(length).T, torch.eye(length), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(restored(transformed(row[None]))[0], row, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("numel", [1, 5, 64, 100, 4097])
def test_all_coefficients_are_the_gradient(numel: int) -> None:
    gradient = noise(numel)
    torch.testing.assert_close(there_and_back(Dct(chunk=64, k=64), gradient), gradient)


def test_square_error_is_that_of_the_coefficients_left_out() -> None:
    gradient = noise(64 * 50)
    squares = transformed(gradient.view(50, 64)).square().sort(dim=1).values
    lost = float((there_and_back(Dct(chunk=64, k=4), gradient) - gradient).square().sum())
    assert lost == pytest.approx(float(squares[:, :-4].sum()), rel=1e-4)


def test_smooth_gradient_is_kept_in_few_coefficients() -> None:
    gradient = torch.linspace(-1, 1, 64 * 50).sin()
    lost = (there_and_back(Dct(chunk=64, k=4), gradient) - gradient).norm() / gradient.norm()
    assert float(lost) < 0.01


def test_defaults_send_a_coefficient_in_five_bytes() -> None:
    assert len(bytes(Dct().encode(noise(6400), 0))) == 100 * 4 * 5


@pytest.mark.parametrize("places", [[64, 65, 66, 67], [3, 2, 1, 0], [5, 5, 6, 7]])
def test_places_that_nothing_was_kept_of_are_refused(places: list[int]) -> None:
    with pytest.raises(CodecError) as caught:
        Dct().decode(memoryview(bytes(places) + bytes(16)), 64)
    assert caught.value.field == "places"


@pytest.mark.parametrize("options", [{"chunk": 0}, {"chunk": 257}, {"k": 0}, {"k": 65}])
def test_an_option_out_of_range_is_named(options: dict[str, int]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Dct(**options)
