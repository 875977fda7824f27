"""The kernel distance against its closed form for Gaussians."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from benchmarks.distances.kernel import kernel_distance, polynomial_kernel

WIDTH = 4
SHIFT = torch.tensor([0.9, -0.4, 0.0, 0.6], dtype=torch.float64)


def gaussian(count: int, seed: int) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def expected_kernel(mean: Tensor, other: Tensor) -> Tensor:
    """E (xᵀy/D + 1)³ of x ~ N(m, I) and y ~ N(m', I): xᵀy has mean mᵀm', variance |m|² + |m'|² + D, skew 6 mᵀm'."""
    product, variance = mean @ other, mean @ mean + other @ other + WIDTH
    return (product / WIDTH + 1) ** 3 + 3 * (product / WIDTH + 1) * variance / WIDTH**2 + 6 * product / WIDTH**3


def closed_form(shift: Tensor) -> float:
    zero = torch.zeros_like(shift)
    return float(expected_kernel(zero, zero) + expected_kernel(shift, shift) - 2 * expected_kernel(zero, shift))


@pytest.mark.parametrize("shift", [torch.zeros_like(SHIFT), SHIFT])
def test_unbiased_for_any_number_of_images(shift: Tensor):
    """The mean of many estimates from 3 and 5 images each is the closed form, within 4 of its standard errors."""
    repeats = 3000
    x, y = gaussian(3 * repeats, 0).reshape(repeats, 3, WIDTH), gaussian(5 * repeats, 1).reshape(repeats, 5, WIDTH)
    values = torch.tensor([kernel_distance(a, b + shift, subsets=1)[0] for a, b in zip(x, y, strict=True)])
    error = values.std() / math.sqrt(repeats)
    assert abs(values.mean() - closed_form(shift)) < 4 * error
    # the biased estimate, which pairs each image with itself too, is beyond it by far
    biased = [
        polynomial_kernel(a, a).mean() + polynomial_kernel(b, b).mean() - 2 * polynomial_kernel(a, b).mean()
        for a, b in zip(x, y, strict=True)
    ]
    assert torch.stack(biased).mean() > closed_form(shift) + 10 * error


def test_many_images_agree_with_the_closed_form():
    x, y = gaussian(4000, 2), gaussian(4000, 3) + SHIFT
    value, deviation = kernel_distance(x, y, subset_size=5000)
    assert value == pytest.approx(closed_form(SHIFT), rel=0.1)
    assert deviation == 0.0  # both sets whole: one subset
    of_subsets, deviation = kernel_distance(x, y, subsets=50, subset_size=200)
    assert of_subsets == pytest.approx(value, abs=4 * deviation / math.sqrt(50))
    assert 0 < deviation < value


def test_the_same_seed_takes_the_same_subsets():
    x, y = gaussian(100, 4), gaussian(80, 5)
    one = kernel_distance(x, y, subsets=5, subset_size=20)
    assert kernel_distance(x, y, subsets=5, subset_size=20) == one
    assert kernel_distance(x, y, subsets=5, subset_size=20, seed=1) != one


def test_the_order_of_the_images_does_not_matter_where_they_are_taken_whole():
    x, y = gaussian(50, 6), gaussian(50, 7)
    assert kernel_distance(x.flip(0), y)[0] == pytest.approx(kernel_distance(x, y)[0], abs=1e-12)


@pytest.mark.parametrize("settings", [{"subsets": 0}, {"subset_size": 1}])
def test_senseless_settings_are_refused(settings: dict[str, int]):
    with pytest.raises(ValueError, match="subset"):
        kernel_distance(gaussian(5, 0), gaussian(5, 1), **settings)
