"""The cheap severities on images of known noise and known residual, and the map that makes a σ̂ of them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from benchmarks.cheap_severities import Calibration, residual_std, wavelet_noise
from flashray.degradations import make_degradation
from flashray.degradations.simulate import add_noise
from flashray.errors import ConfigError
from flashray.severity import Start
from tests.support.golden import toy_schedule

LEVELS = torch.tensor([0.01, 0.02, 0.05, 0.1, 0.2])


def noisy(x_CHW: Tensor, levels_B: Tensor = LEVELS) -> Tensor:
    return add_noise(x_CHW.expand(len(levels_B), -1, -1, -1), levels_B, torch.arange(len(levels_B)))


def test_noise_on_what_is_linear_is_found_to_a_few_percent():
    """A slope is invisible to a wavelet with two vanishing moments: what is left is the spread of a median."""
    slope = torch.linspace(-1, 1, 128).expand(3, 128, 128)
    torch.testing.assert_close(wavelet_noise(noisy(slope)), LEVELS, rtol=0.03, atol=0)
    assert wavelet_noise(slope[None]).item() < 1e-6


def test_noise_on_a_photo_is_found_through_its_texture(photo: Tensor):
    """Texture counts for noise: the estimate lies above, by little where there is much noise."""
    found = wavelet_noise(noisy(photo))
    assert (found > 0.97 * LEVELS).all()
    assert (found < LEVELS + 0.01).all()
    blurred = (
        make_degradation("gaussian_blur")
        .bind({"blur_std": torch.full((5,), 2.0)}, (512, 512))
        .A(photo.expand(5, -1, -1, -1))
    )
    found = wavelet_noise(add_noise(blurred, LEVELS, torch.arange(5)))
    torch.testing.assert_close(found, LEVELS, rtol=0.05, atol=0)


@pytest.mark.parametrize("shape", [(1, 3, 4, 4), (2, 1, 7, 33)])
def test_any_size_from_four_pixels_on_and_no_image_sees_another(shape: tuple[int, ...]):
    y = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = wavelet_noise(y)
    assert found.shape == (shape[0],)
    for n in range(shape[0]):
        torch.testing.assert_close(wavelet_noise(y[n : n + 1])[0], found[n])


def test_the_residual_of_a_perfect_estimate_is_the_noise(photo: Tensor):
    x = photo[:, :128, :128].expand(5, -1, -1, -1)
    operator = make_degradation("gaussian_blur").bind({"blur_std": torch.full((5,), 1.5)}, (128, 128))
    y = add_noise(operator.A(x), LEVELS, torch.arange(5))
    torch.testing.assert_close(residual_std(y, 3 * x, operator, lambda z: z / 3), LEVELS, rtol=0.02, atol=0)


def test_the_residual_adds_what_the_operator_lets_through_of_an_error(photo: Tensor):
    """An error of standard deviation 0.08 on [0, 1] beside noise of 0.06 is 0.1; one that the blur removes is none."""
    x = photo[None, :, :128, :128]
    y = add_noise(x, torch.tensor([0.06]), torch.tensor([0]))
    error = 0.16 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    unblurred = make_degradation("gaussian_blur").bind({"blur_std": torch.tensor([0.05])}, (128, 128))
    assert residual_std(y, x + error, unblurred, lambda z: z).item() == pytest.approx(0.1, rel=0.02)
    blur = make_degradation("gaussian_blur").bind({"blur_std": torch.tensor([3.0])}, (128, 128))
    y = add_noise(blur.A(x), torch.tensor([0.06]), torch.tensor([0]))
    assert residual_std(y, x + error, blur, lambda z: z).item() == pytest.approx(0.06, rel=0.05)


def pairs(slope: float, count: int = 200) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    severity = torch.rand(count, generator=generator)
    return severity, 1 + slope * severity.square() + 0.1 * torch.randn(count, generator=generator)


@pytest.mark.parametrize("slope", [0.8, -0.8])
def test_the_fit_is_isotonic_regression_in_the_direction_that_fits(slope: float):
    severity, sigma = pairs(slope)
    map_ = Calibration.fit("wavelet_noise", severity, sigma)
    other = IsotonicRegression(increasing=slope > 0, out_of_bounds="clip").fit(severity.double(), sigma.double())
    expected = torch.from_numpy(other.predict(severity.double())).to(severity)
    torch.testing.assert_close(map_(severity), expected, rtol=1e-5, atol=1e-5)
    assert (map_(severity) - (1 + slope * severity.square())).abs().mean() < 0.03
    # between the knots a line, beyond them a constant
    middle = [(a + b) / 2 for a, b in pairwise(map_.severity)]
    expected = [(a + b) / 2 for a, b in pairwise(map_.sigma)]
    torch.testing.assert_close(map_(torch.tensor(middle)), torch.tensor(expected))
    ends = map_(torch.tensor([-math.inf, -3.0, 7.0, math.inf]))
    torch.testing.assert_close(ends, torch.tensor(map_.sigma)[[0, 0, -1, -1]])


def test_a_severity_that_says_nothing_gives_the_mean():
    alternating = torch.tensor([1.0, 0.0] * 50 + [1.0])
    map_ = Calibration.fit("residual_std", torch.arange(101.0), alternating)
    assert map_(torch.tensor([20.0, 80.0])) == pytest.approx([alternating.mean().item()] * 2, abs=0.02)


def test_equal_severities_and_a_single_pair():
    map_ = Calibration.fit("residual_std", torch.tensor([0.1, 0.1, 0.1, 0.3]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    torch.testing.assert_close(map_(torch.tensor([0.1, 0.2, 0.3])), torch.tensor([2.0, 3.0, 4.0]))
    assert Calibration.fit("residual_std", torch.tensor([0.2]), torch.tensor([0.5]))(torch.tensor([9.0])).item() == 0.5


def test_flash_starts_from_it():
    severity, sigma = pairs(0.8)
    map_ = Calibration.fit("wavelet_noise", severity, 0.5 * sigma)
    step, fallback = Start().start_step(map_(torch.tensor([0.0, 0.3, 0.6, 0.9, math.nan])), toy_schedule())
    assert step[0] < step[2] < step[3] < step[4] == 1000
    assert fallback.tolist() == [False] * 4 + [True]


@pytest.mark.parametrize(
    ("name", "severity", "sigma"),
    [
        ("guess", (1.0, 2.0), (1.0, 2.0)),
        ("wavelet_noise", (2.0, 1.0), (1.0, 2.0)),
        ("wavelet_noise", (1.0, 2.0, 3.0), (1.0, 2.0, 1.0)),
        ("wavelet_noise", (1.0, 2.0), (-1.0, 2.0)),
        ("wavelet_noise", (1.0, 2.0), (1.0, math.nan)),
        ("wavelet_noise", (1.0, 2.0), (1.0,)),
        ("wavelet_noise", (), ()),
    ],
)
def test_what_is_no_monotone_map_is_refused(name: str, severity: tuple[float, ...], sigma: tuple[float, ...]):
    with pytest.raises(ConfigError, match="calibration"):
        Calibration(name, severity, sigma)


def test_pairs_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"\[N\]"):
        Calibration.fit("wavelet_noise", torch.zeros(3), torch.zeros(2))
    with pytest.raises(ValueError, match="finite"):
        Calibration.fit("wavelet_noise", torch.tensor([math.nan]), torch.tensor([1.0]))
