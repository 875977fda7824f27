from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from scipy import ndimage

from flashray.degradations import make_degradation
from flashray.degradations.gaussian_blur import GaussianBlur
from flashray.errors import ConfigError

STDS = (0.3, 0.8, 1.7, 3.0)
SIZES = [(32, 32), (16, 40), (37, 21), (7, 5), (2, 3), (1, 9)]  # kernel 61: most are smaller than it


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def stds(*values: float) -> dict[str, torch.Tensor]:
    return {"blur_std": torch.tensor(values, dtype=torch.float64)}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kernel_size", [3, 31, 61])
def test_adjoint_passes_the_dot_product_test(size: tuple[int, int], kernel_size: int):
    operator = GaussianBlur(kernel_size=kernel_size).bind(stds(*STDS), size)
    x, y = random(4, 3, *size), random(4, 3, *size, seed=1)
    forward = (operator.A_linear(x) * y).flatten(1).sum(dim=1)
    adjoint = (x * operator.A_adjoint(y)).flatten(1).sum(dim=1)
    torch.testing.assert_close(forward, adjoint, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_is_left_alone(size: tuple[int, int]):
    operator = GaussianBlur().bind(stds(*STDS), size)
    x = torch.full((4, 3, *size), 0.7, dtype=torch.float64)
    torch.testing.assert_close(operator.A_linear(x), x, rtol=1e-12, atol=0)
    for kernel in (operator.rows_BK, operator.columns_BK):
        assert (kernel >= 0).all()
        torch.testing.assert_close(kernel.sum(dim=1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("size", [(32, 32), (64, 41), (19, 50)])
def test_blur_is_scipys(size: tuple[int, int]):
    """A different implementation: filtering along axes with borders mirrored, kernel cut at 6 std."""
    x = random(4, 3, *size)
    blurred = GaussianBlur().bind(stds(*STDS), size).A_linear(x)
    for image, std, result in zip(x, STDS, blurred, strict=True):
        expected = ndimage.gaussian_filter(image.numpy(), std, mode="mirror", truncate=6, axes=(1, 2))
        torch.testing.assert_close(result, torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


def test_the_kernel_is_cut_to_its_size():
    """A kernel of 5 pixels, whatever the std: no pixel sees one that is 3 away."""
    point = torch.zeros(1, 1, 20, 20)
    point[0, 0, 10, 10] = 1
    spread = GaussianBlur(kernel_size=5).bind({"blur_std": torch.tensor([3.0])}, (20, 20)).A_linear(point)[0, 0]
    weights = torch.exp(-0.5 * (torch.arange(-2, 3) / 3.0) ** 2)
    expected = torch.zeros(20)
    expected[8:13] = weights / weights.sum()
    torch.testing.assert_close(spread, torch.outer(expected, expected))


def test_images_of_one_batch_have_their_own_blur():
    blur, x = GaussianBlur(), random(4, 3, 24, 30)
    together = blur.bind(stds(*STDS), (24, 30))
    for n, std in enumerate(STDS):
        alone = blur.bind(stds(std), (24, 30))
        torch.testing.assert_close(together.A_linear(x)[n], alone.A_linear(x[n : n + 1])[0], rtol=1e-13, atol=1e-14)
        torch.testing.assert_close(together.A_adjoint(x)[n], alone.A_adjoint(x[n : n + 1])[0], rtol=1e-13, atol=1e-14)


def test_more_blur_leaves_less_detail():
    x = random(1, 3, 32, 32).expand(10, -1, -1, -1)
    std_B = torch.linspace(0.3, 3, 10, dtype=torch.float64)
    variance = GaussianBlur().bind({"blur_std": std_B}, (32, 32)).A_linear(x).flatten(1).var(dim=1)
    assert (variance.diff() < 0).all()


def test_measure_is_the_operator_on_the_other_scale():
    operator = GaussianBlur().bind(stds(*STDS), (16, 16))
    x = random(4, 3, 16, 16) * 2 - 1
    torch.testing.assert_close(operator.A(x), operator.A_linear(x))  # its rows sum to one


def test_blur_is_differentiable_with_the_adjoint_as_its_gradient():
    operator = GaussianBlur().bind(stds(*STDS), (12, 17))
    x, y = random(4, 3, 12, 17).requires_grad_(), random(4, 3, 12, 17, seed=1)
    (gradient,) = torch.autograd.grad((operator.A_linear(x) * y).sum(), x)
    torch.testing.assert_close(gradient, operator.A_adjoint(y))


def test_parameters_cover_the_range_and_repeat():
    blur = make_degradation("gaussian_blur", {"std": [0.5, 2.0]})
    draw = blur.sample_parameters(torch.Generator().manual_seed(3), 4000)["blur_std"]
    assert draw.shape == (4000,)
    assert draw.min() >= 0.5
    assert draw.max() <= 2.0
    histogram = torch.histc(draw, bins=10, min=0.5, max=2.0)
    assert (histogram - 400).abs().max() < 5 * math.sqrt(400)
    assert torch.equal(draw, blur.sample_parameters(torch.Generator().manual_seed(3), 4000)["blur_std"])
    ends = blur.parameters_at(torch.tensor([0.0, 0.5, 1.0]))["blur_std"]
    torch.testing.assert_close(ends, torch.tensor([0.5, 1.25, 2.0]))
    fixed = make_degradation("gaussian_blur", {"std": [1.5, 1.5]})
    assert (fixed.sample_parameters(torch.Generator(), 5)["blur_std"] == 1.5).all()


@pytest.mark.parametrize(
    "settings",
    [
        {"std": [0, 1]},
        {"std": [-1, 1]},
        {"std": [2, 1]},
        {"std": [math.nan, 1]},
        {"std": [1, math.inf]},
        {"std": [1]},
        {"std": [1, 2, 3]},
        {"std": 2.0},
        {"std": ["a", "b"]},
        {"kernel_size": 60},
        {"kernel_size": 1},
        {"kernel_size": -3},
        {"kernel_size": 60.5},
        {"kernel_size": "61"},
    ],
)
def test_bad_settings_are_config_errors(settings: dict[str, Any]):
    with pytest.raises(ConfigError, match="gaussian_blur"):
        make_degradation("gaussian_blur", settings)


def test_unknown_names_and_settings_are_named_beside_the_known_ones():
    with pytest.raises(ConfigError, match=r"'fog' is not known; known: .*gaussian_blur"):
        make_degradation("fog")
    with pytest.raises(ConfigError, match=r"unknown key strength; known: std, kernel_size"):
        make_degradation("gaussian_blur", {"strength": 1, "std": [1, 2]})


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_parameters_out_of_range_are_config_errors(std: float):
    blur = make_degradation("gaussian_blur")
    blur.check_parameters({"blur_std": torch.tensor([0.1, 9.0])})
    with pytest.raises(ConfigError, match="blur_std"):
        blur.check_parameters({"blur_std": torch.tensor([1.0, std])})


def test_the_operator_of_some_images_is_theirs():
    operator, x = GaussianBlur().bind(stds(*STDS), (12, 17)), random(4, 3, 12, 17)
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, False, True]), torch.tensor([], dtype=torch.long)):
        torch.testing.assert_close(operator.select(rows).A_linear(x[rows]), operator.A_linear(x)[rows])
