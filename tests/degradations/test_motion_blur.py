from __future__ import annotations

import math

import pytest
import torch
from scipy import ndimage

from flashray.degradations import make_degradation
from flashray.degradations.motion_blur import KernelBlur, draw_kernel, motion_path
from flashray.errors import ConfigError


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("side", "size"), [(5, (32, 32)), (15, (16, 40)), (15, (9, 8)), (3, (2, 7))])
def test_blur_is_scipys(side: int, size: tuple[int, int]):
    """A different implementation: correlation in space, borders mirrored. Kernels up to twice the image less one."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *size, dtype=torch.float64, generator=generator)
    kernel = torch.rand(2, side, side, dtype=torch.float64, generator=generator)
    blurred = KernelBlur.of(kernel, size).A_linear(x)
    for image, k, result in zip(x, kernel, blurred, strict=True):
        for channel, one in zip(image, result, strict=True):
            expected = ndimage.correlate(channel.numpy(), k.numpy(), mode="mirror")
            torch.testing.assert_close(one, torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("side", "size"), [(15, (16, 40)), (15, (9, 8)), (3, (2, 7))])
def test_the_adjoint_folds_the_border_back(side: int, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 2, 3, *size, dtype=torch.float64, generator=generator)
    operator = KernelBlur.of(torch.rand(2, side, side, dtype=torch.float64, generator=generator), size)
    forward = (operator.A_linear(x) * y).flatten(1).sum(dim=1)
    torch.testing.assert_close(forward, (x * operator.A_adjoint(y)).flatten(1).sum(dim=1), rtol=1e-12, atol=0)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((operator.A_linear(x) * y).sum(), x)
    torch.testing.assert_close(gradient, operator.A_adjoint(y))


def test_a_line_has_its_length_and_direction():
    length, angle = doubles(10, 10, 7, 0), doubles(0, 90, 30, 45)
    path = motion_path(length, angle, torch.zeros(4).double())
    ends = path[:, -1] - path[:, 0]
    torch.testing.assert_close(ends.norm(dim=1), length)
    expected = torch.stack([angle.deg2rad().sin(), angle.deg2rad().cos()], dim=1) * length[:, None]
    torch.testing.assert_close(ends, expected)
    kernel = draw_kernel(path, 13)
    torch.testing.assert_close(kernel.sum(dim=(1, 2)), torch.ones(4, dtype=torch.float64))
    assert (kernel >= 0).all()
    assert kernel[0].sum(dim=0).count_nonzero() == 11  # columns -5 … 5
    assert kernel[0].sum(dim=1).count_nonzero() == 1
    torch.testing.assert_close(kernel[1], kernel[0].T)
    assert kernel[3, 6, 6] == 1  # no motion
    rows, columns = torch.meshgrid(torch.arange(13.0) - 6, torch.arange(13.0) - 6, indexing="ij")
    slope = (kernel[2] * rows * columns).sum() / (kernel[2] * columns.square()).sum()
    assert math.degrees(math.atan(slope)) == pytest.approx(30, abs=3)


def test_a_random_path_is_smooth_as_long_as_asked_and_fits_its_kernel():
    seeds = torch.arange(1, 101).double()
    path = motion_path(torch.full((100,), 14.0).double(), torch.zeros(100).double(), seeds)
    steps = path.diff(dim=1).norm(dim=2)
    torch.testing.assert_close(steps.sum(dim=1), torch.full((100,), 14.0).double())
    turning = torch.nn.functional.cosine_similarity(path.diff(dim=1)[:, 1:], path.diff(dim=1)[:, :-1], dim=2)
    assert turning.min() > math.cos(math.radians(50))
    straightness = (path[:, -1] - path[:, 0]).norm(dim=1) / 14
    assert straightness.min() < 0.5
    assert path.abs().max() <= 7
    kernel = draw_kernel(path, 15)
    torch.testing.assert_close(kernel.sum(dim=(1, 2)), torch.ones(100, dtype=torch.float64))
    assert len({tuple(k.flatten().tolist()) for k in kernel}) == 100


def test_the_settings_choose_the_path():
    linear, wandering = (make_degradation("motion_blur", {"path": path}) for path in ("linear", "random"))
    draws = [family.sample_parameters(torch.Generator().manual_seed(0), 50) for family in (linear, wandering)]
    assert (draws[0]["motion_seed"] == 0).all()
    assert (draws[1]["motion_seed"] > 0).all()
    assert draws[0]["motion_angle"].max() < 180
    assert make_degradation("motion_blur", {"length": [5, 5]}).fixed_parameters() is None  # the direction is open


def test_a_kernel_larger_than_the_image_is_named():
    with pytest.raises(ConfigError, match=r"31 pixels.* 15 x 40"):
        KernelBlur.of(torch.ones(1, 31, 31), (40, 15))
