from __future__ import annotations

import math

import pytest
import torch

from flashray.degradations import make_degradation
from flashray.degradations.nonlinear_blur import camera_path, move, saturate, to_light, to_pixels
from tests.support.unit_scale import on_unit_scale

SIZE = (48, 64)


def operator(motion: float, seed: int = 0, **settings: float):
    parameters = {"motion": torch.tensor([motion]), "motion_seed": torch.tensor([float(seed)])}
    return make_degradation("nonlinear_blur", settings).bind({k: v.double() for k, v in parameters.items()}, SIZE)


def test_light_and_pixels_are_inverse_and_smooth():
    x = torch.linspace(-0.3, 1.3, 161, dtype=torch.float64).requires_grad_()
    light = to_light(x, 2.2)
    torch.testing.assert_close(to_pixels(light, 2.2), x)
    torch.testing.assert_close(to_light(torch.tensor([0.0, 1.0]), 2.2), torch.tensor([0.0, 1.0]))
    (slope,) = torch.autograd.grad(to_pixels(x, 2.2).sum(), x)
    assert (slope > 0).all()
    assert slope.max() < 25  # finite at black


def test_black_has_a_slope():
    """Restored images are clamped, so their blacks are exactly -1."""
    blur = operator(6.0)
    x = torch.full((1, 3, *SIZE), -1.0, dtype=torch.float64)
    d = torch.zeros_like(x)
    d[..., 20:30, 20:30] = 1
    _, at_black = torch.func.jvp(blur.A, (x,), (d,))
    _, beside = torch.func.jvp(blur.A, (x + 1e-6,), (d,))
    assert at_black.norm() > 1
    torch.testing.assert_close(at_black, beside, rtol=1e-3, atol=1e-4)


def test_the_sensor_saturates():
    light = torch.tensor([0.0, 0.5, 1.0, 5.0, 100.0], dtype=torch.float64)
    held = saturate(light)
    assert (held.diff() >= 0).all()
    assert held[-1] <= 1
    torch.testing.assert_close(held[:2], light[:2], atol=1e-5, rtol=0)


def test_a_camera_at_rest_changes_little():
    x = torch.rand(1, 3, *SIZE, dtype=torch.float64)
    y = on_unit_scale(operator(0.0, highlights=0.0), x)
    dark = x < 0.8
    torch.testing.assert_close(y[dark], x[dark], atol=2e-3, rtol=0)
    assert (y - x).abs().max() < 0.03


@pytest.mark.parametrize("seed", range(4))
def test_the_path_has_its_length_in_pixels(seed: int):
    """A point at the rolling's centre moves by the path alone, whose ends are `motion` pixels apart or, bent, more."""
    motion = 6.0
    path = camera_path(torch.tensor([motion]).double(), torch.tensor([seed]).double(), 33, SIZE)[0]
    height, width = SIZE
    corners = torch.tensor([[x, y, 1.0] for x in (-1, 0, 1) for y in (-1, 0, 1)]).double()
    where = torch.einsum("kij,nj->kni", path, corners) * torch.tensor([width / 2, height / 2])
    travelled = (where[-1] - where[0]).norm(dim=1)
    assert travelled.max() < 2.6 * motion
    assert abs(travelled.mean() - motion) < 0.75 * motion
    assert travelled.max() - travelled.min() > 0.01 * motion  # not the same everywhere
    straight = (path[:, 0, 0].square() + (path[:, 1, 0] * height / width).square()).sqrt()
    torch.testing.assert_close(straight, torch.ones_like(straight))  # maps are rigid: no zoom


def test_moving_by_whole_pixels_is_a_shift():
    x = torch.rand(1, 3, *SIZE, dtype=torch.float64)
    shift = torch.tensor([[[1, 0, 2 * 3 / SIZE[1]], [0, 1, -2 * 2 / SIZE[0]]]]).double()
    torch.testing.assert_close(move(x, shift)[..., 2:, :-3], x[..., :-2, 3:])


def test_bright_parts_win_over_dark_ones():
    """What makes it nonlinear: a bright line on black is smeared brighter than a blur of pixel values would have it."""
    x = torch.zeros(1, 3, *SIZE, dtype=torch.float64)
    x[..., 30:33] = 1
    y = on_unit_scale(operator(10.0, seed=1), x)
    assert y.mean() > 1.2 * x.mean()
    assert y.max() <= 1


def test_paths_of_seeds_differ():
    one, other = (operator(8.0, seed=s).path_BK23 for s in (1, 2))
    assert (one - other).abs().max() > 0.01
    assert math.isfinite(one.sum().item())
