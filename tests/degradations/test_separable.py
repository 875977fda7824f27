from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flashray.degradations import separable
from flashray.degradations.gaussian_blur import SeparableBlur
from flashray.degradations.masking import fill_in
from flashray.degradations.separable import convolve, convolve_adjoint, gaussian_kernel
from tests.support.blur import blur_matrix

STDS = (0.3, 0.8, 1.7, 3.0, 16.0)
SIZES = [(32, 32), (16, 40), (37, 21), (7, 5), (2, 3), (1, 9), (9, 1), (1, 1), (64, 129), (200, 130)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense(x: Tensor, std_B: Tensor, kernel_size: int) -> tuple[Tensor, Tensor]:
    """(A x, Aᵀ x) by matrices of the image's size."""
    rows, columns = (blur_matrix(std_B, kernel_size, length)[:, None] for length in x.shape[2:])
    return rows @ x @ columns.mT, rows.mT @ x @ columns


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel_size", [3, 31, 61, 401])
def test_the_blur_and_its_adjoint_are_those_of_dense_matrices(size: tuple[int, int], kernel_size: int):
    """Every image of the batch has its own std; most images are smaller than the largest kernel."""
    std_B, x = torch.tensor(STDS, dtype=torch.float64), random(len(STDS), 3, *size)
    blur = SeparableBlur.gaussian(std_B, kernel_size, size)
    forward, adjoint = dense(x, std_B, kernel_size)
    torch.testing.assert_close(blur.A_linear(x), forward, rtol=0, atol=1e-12)
    torch.testing.assert_close(blur.A_adjoint(x), adjoint, rtol=0, atol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 63, 64, 65, 200])
@pytest.mark.parametrize("radius", [0, 1, 2, 31])
@pytest.mark.parametrize("dim", [2, 3])
def test_the_adjoint_is_exact_for_any_kernel(length: int, radius: int, dim: int):
    """⟨A x, y⟩ = ⟨x, Aᵀ y⟩, with kernels that no symmetry helps."""
    if radius >= length:
        with pytest.raises(ValueError, match="does not fit an axis"):
            convolve(random(1, 1, length, length), random(1, 2 * radius + 1), dim)
        return
    kernel = random(2, 2 * radius + 1, seed=2)
    size = (length, 7) if dim == 2 else (7, length)
    x, y = random(2, 3, *size), random(2, 3, *size, seed=1)
    left = (convolve(x, kernel, dim) * y).flatten(1).sum(dim=1)
    right = (x * convolve_adjoint(y, kernel, dim)).flatten(1).sum(dim=1)
    torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)


def test_gradients_are_the_adjoint_and_the_operator():
    std_B = torch.tensor([0.8, 3.0], dtype=torch.float64)
    blur = SeparableBlur.gaussian(std_B, 61, (33, 70))
    x, y = random(2, 3, 33, 70).requires_grad_(), random(2, 3, 33, 70, seed=1).requires_grad_()
    (forward,) = torch.autograd.grad((blur.A_linear(x) * y.detach()).sum(), x)
    (adjoint,) = torch.autograd.grad((blur.A_adjoint(y) * x.detach()).sum(), y)
    torch.testing.assert_close(forward, blur.A_adjoint(y.detach()))
    torch.testing.assert_close(adjoint, blur.A_linear(x.detach()))


def test_an_image_of_a_batch_is_blurred_as_it_is_alone():
    std_B, x = torch.tensor(STDS, dtype=torch.float64), random(len(STDS), 3, 50, 80)
    together = SeparableBlur.gaussian(std_B, 61, (50, 80))
    for n in range(len(STDS)):
        alone = SeparableBlur.gaussian(std_B[n : n + 1], 61, (50, 80))
        torch.testing.assert_close(alone.A_linear(x[n : n + 1])[0], together.A_linear(x)[n], rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(alone.A_adjoint(x[n : n + 1])[0], together.A_adjoint(x)[n], rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("std", [math.nan, math.inf])
def test_a_std_that_is_not_finite_spoils_its_own_image_alone(std: float):
    x = random(2, 3, 20, 30)
    good = SeparableBlur.gaussian(torch.tensor([1.0], dtype=torch.float64), 61, (20, 30)).A_linear(x[:1])
    both = SeparableBlur.gaussian(torch.tensor([1.0, std], dtype=torch.float64), 61, (20, 30)).A_linear(x)
    torch.testing.assert_close(both[:1], good, rtol=1e-12, atol=1e-13)
    assert bool(torch.isfinite(both[1]).all()) is (std == math.inf)  # ∞ is the mean over the kernel


def test_kernels_sum_to_one_and_are_no_wider_than_asked():
    kernel = gaussian_kernel(torch.tensor(STDS, dtype=torch.float64), 61, 100)
    assert kernel.shape == (len(STDS), 61)
    torch.testing.assert_close(kernel.sum(dim=1), torch.ones(len(STDS), dtype=torch.float64))
    assert gaussian_kernel(torch.tensor([0.3]), 61, 100).shape == (1, 5)
    assert gaussian_kernel(torch.tensor([3.0]), 61, 4).shape == (1, 7)
    assert gaussian_kernel(torch.empty(0), 61, 4).shape == (0, 1)


@pytest.mark.parametrize("piece", [1, 5000])
def test_no_pixel_depends_on_how_many_are_convolved_at_once(piece: int, monkeypatch: pytest.MonkeyPatch):
    blur, x = SeparableBlur.gaussian(torch.tensor([0.8, 3.0]).double(), 61, (33, 70)), random(2, 3, 33, 70)
    forward, adjoint = blur.A_linear(x), blur.A_adjoint(x)
    monkeypatch.setattr(separable, "_PIECE", piece)
    torch.testing.assert_close(blur.A_linear(x), forward, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(blur.A_adjoint(x), adjoint, rtol=1e-13, atol=1e-14)


def test_float32_agrees_with_float64():
    std_B, x = torch.tensor([0.3, 3.0]), random(2, 3, 100, 140)
    single = SeparableBlur.gaussian(std_B, 61, (100, 140)).A_linear(x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), dense(x, std_B.double(), 61)[0], rtol=0, atol=2e-6)


def test_filling_in_serves_a_batch_with_one_kernel():
    """Each image of a batch is filled in as it is alone, and a constant image stays constant."""
    y = random(3, 3, 40, 150)
    mask = (random(3, 1, 40, 150, seed=3) > 0.8).double()
    filled = fill_in(y, mask)
    for n in range(3):
        torch.testing.assert_close(fill_in(y[n : n + 1], mask[n : n + 1])[0], filled[n], rtol=1e-12, atol=1e-12)
    constant = torch.full_like(y, 0.25)
    torch.testing.assert_close(fill_in(constant, mask), constant, rtol=1e-9, atol=1e-9)
