from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from flashray.degradations import make_degradation
from flashray.degradations.base import AffineOperator
from flashray.degradations.jpeg import Jpeg
from flashray.errors import ConfigError
from flashray.recipe import DegradationConfig, FusionConfig, Recipe, SolverConfig
from flashray.severity import Start
from flashray.severity.fusion import (
    BLOCK,
    GREY_LEVEL,
    agree_with_measurement,
    blockiness,
    fuse,
    grain_of,
    settled_residual,
    settled_weight,
)
from flashray.solvers.solver import Problem


def images(seed: int, size: tuple[int, int] = (14, 22), batch: int = 2) -> Tensor:
    return torch.rand(batch, 3, *size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_no_weight_is_the_measurement_and_a_full_one_the_decoded_image():
    y, decoded = images(0), images(1)
    for weight, expected in ((0.0, y), (1.0, decoded), (0.5, (y + decoded) / 2)):
        fused = fuse(y, decoded, torch.full((2, 4, 6), weight), 4, (14, 22))
        if weight == 0:
            assert torch.equal(fused, y)
        torch.testing.assert_close(fused, expected, rtol=0, atol=1e-15)


def test_weights_belong_to_their_image_and_place():
    y, decoded = images(0, (32, 32)), images(1, (32, 32))
    weight = torch.zeros(2, 8, 8)
    weight[1, :, 4:] = 1
    fused = fuse(y, decoded, weight, 4, (32, 32))
    assert torch.equal(fused[0], y[0])
    assert torch.equal(fused[1, :, :, :14], y[1, :, :, :14])
    torch.testing.assert_close(fused[1, :, :, 18:], decoded[1, :, :, 18:])
    share = (fused[1] - y[1]) / (decoded[1] - y[1])
    ramp = share[0, 0, 13:19]
    assert (ramp.diff() >= -1e-9).all()  # interpolated between positions
    assert ((share > -1e-9) & (share < 1 + 1e-9)).all()


@pytest.mark.parametrize("valid", [(9, 14), (8, 11), (1, 14)])
@pytest.mark.parametrize("radius", [0, 2, 40])
def test_the_mean_of_its_neighbourhood_within_the_photo_decides_a_weight(radius: int, valid: tuple[int, int]):
    weight = torch.rand(2, 9, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = settled_weight(weight, radius, 0.4, valid)
    assert found.shape == weight.shape
    spoilt = weight.clone()
    spoilt[:, valid[0] :], spoilt[:, :, valid[1] :] = torch.nan, torch.nan
    assert torch.equal(settled_weight(spoilt, radius, 0.4, valid), found)
    for row in range(9):
        for column in range(14):
            i, j = min(row, valid[0] - 1), min(column, valid[1] - 1)  # the padding repeats the border
            near = weight[:, max(0, i - radius) : i + radius + 1, max(0, j - radius) : j + radius + 1]
            inside = near[:, : valid[0] - max(0, i - radius), : valid[1] - max(0, j - radius)]
            mean = inside.mean(dim=(1, 2))
            expected = torch.maximum(weight[:, i, j], mean) * ((mean - 0.4) / 0.4).clamp(0, 1)
            torch.testing.assert_close(found[:, row, column], expected, rtol=1e-9, atol=1e-12)


def test_a_speck_is_left_alone_and_a_damaged_part_changes_everywhere():
    weight = torch.zeros(2, 20, 20)
    weight[0, 9:12, 9:12] = 1.0  # of 49 positions nine
    weight[1] = 1.0
    weight[1, 10, 10] = 0.0
    speck, part = settled_weight(weight, 3, 0.25, (20, 20))
    assert (speck == 0).all()
    assert part[10, 10].item() == pytest.approx(48 / 49)
    assert (part[weight[1] > 0] == 1).all()


def smooth(seed: int, size: tuple[int, int], strength: float) -> Tensor:
    """A residual that sharpens: blocks of 8 pixels of one sign, of this many grey levels."""
    sign = images(seed, (size[0] // 8, size[1] // 8)).sign().repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    return 2 * GREY_LEVEL * strength * sign


@pytest.mark.parametrize(("strength", "share"), [(0.0, 0.0), (2.0, 0.0), (3.0, 0.5), (4.0, 1.0), (9.0, 1.0)])
def test_a_residual_that_sharpens_counts_from_the_grain_on(strength: float, share: float):
    """Grey levels of its root mean square, with a grain of two."""
    residual = smooth(0, (32, 48), strength)
    found = settled_residual(residual, 20, torch.full((2,), 2.0), 4, (8, 12))
    torch.testing.assert_close(found, share * residual, rtol=0, atol=1e-9)
    each = settled_residual(residual, 20, torch.tensor([0.0, 2.0]), 4, (8, 12))  # each image has its own
    assert torch.equal(each[0], residual[0])
    assert torch.equal(each[1], found[1])


def test_a_residual_that_sharpens_is_judged_in_its_own_part_of_the_photo():
    residual = smooth(0, (40, 160), 2)
    residual[..., :80] *= 10
    grain = torch.full((2,), 2.0)
    found = settled_residual(residual, 4, grain, 4, (10, 40))
    assert torch.equal(found[..., :60], residual[..., :60])
    assert (found[..., 100:] == 0).all()
    spoilt = residual.clone()
    spoilt[..., 120:] = torch.nan  # padding
    assert torch.equal(settled_residual(spoilt, 4, grain, 4, (10, 30))[..., :120], found[..., :120])


@pytest.mark.parametrize(("covered", "share"), [(48, 0.0), (76, 0.0), (96, 0.5), (116, 1.0), (128, 1.0)])
@pytest.mark.parametrize("strength", [1.0, 9.0])
def test_noise_that_is_taken_away_counts_where_it_is_everywhere(strength: float, covered: int, share: float):
    """Columns of 128 that are noisy; texture that is mistaken for noise is in parts, however strong."""
    residual = torch.zeros(2, 3, 64, 128, dtype=torch.float64)
    residual[..., :covered] = 2 * GREY_LEVEL * strength * images(0, (64, covered)).sign()
    found = settled_residual(residual, 2, torch.full((2,), 3.0), 4, (16, 32))
    torch.testing.assert_close(found, share * residual, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("quality", "least", "most"), [(None, 0.9, 1.05), (95, 0.9, 1.1), (20, 1.4, 2.5)])
def test_blocks_of_jpeg_are_seen(photo: Tensor, quality: int | None, least: float, most: float):
    y = photo[None, :, :200, :203]
    if quality is not None:
        y = Jpeg().bind({"quality": torch.tensor([float(quality)])}, (200, 203)).A(y)
    assert least < blockiness(y).item() < most
    moved = blockiness(y[..., 3:, 5:])  # the blocks begin elsewhere
    assert moved.item() < 1.1


def test_the_grain_falls_with_blockiness():
    step = torch.zeros(3, 3, 64, 64)
    column = torch.arange(64)
    for n, height in enumerate((1.0, 1.3, 2.0)):  # steps of blocks, over those of all neighbours
        slope = torch.where(column % BLOCK == 0, height, 1.0).cumsum(0) * GREY_LEVEL
        step[n] = slope + slope[:, None]
    assert blockiness(step).tolist() == pytest.approx([1.0, 1.3, 2.0], rel=1e-4)
    assert grain_of(step, 4.0).tolist() == pytest.approx([4.0, 2.0, 0.0], abs=1e-2)


@pytest.mark.parametrize("times", [2, 4])
def test_pixels_that_were_repeated_are_no_blocks(photo: Tensor, times: int):
    repeated = photo[None, :, :96, :104].repeat_interleave(times, dim=2).repeat_interleave(times, dim=3)
    assert blockiness(repeated).item() < 1.1


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (5, 7), (16, 16)])
def test_flat_and_tiny_photos_have_no_blocks(size: tuple[int, int]):
    assert blockiness(torch.full((2, 3, *size), 0.3)).tolist() == [1.0, 1.0]


@dataclass(frozen=True)
class Mask(AffineOperator):
    kept: Tensor

    def A_linear(self, x: Tensor) -> Tensor:
        return self.kept * x

    def A_adjoint(self, y: Tensor) -> Tensor:
        return self.kept * y


def masked(noise_std: tuple[float, ...], seed: int = 0) -> tuple[Problem, Tensor]:
    """A problem of two images of which half of the pixels are seen, and D(z)."""
    kept = (images(3) > 0).double()
    problem = Problem(
        kept * images(seed), Mask(kept), torch.tensor(noise_std, dtype=torch.float64), lambda x: x, lambda z: z
    )
    return problem, images(seed + 1)


def test_a_mask_and_an_image_agree_on_their_weighted_mean():
    problem, decoded = masked((0.05, 0.2))
    sigma_hat, decoder_std, gain = torch.tensor([0.1, 0.6], dtype=torch.float64), 0.03, 0.15
    found = agree_with_measurement(decoded, problem, sigma_hat, decoder_std, gain)
    of_x = (decoder_std**2 + (gain * sigma_hat) ** 2)[:, None, None, None]
    of_y = problem.noise_std_B.square()[:, None, None, None]
    mean = (problem.y_BCHW / of_y + decoded / of_x) / (1 / of_y + 1 / of_x)
    expected = torch.where(problem.operator.kept > 0, mean, decoded)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_vague_measurements_change_nothing_and_sharp_ones_are_kept():
    vague, decoded = masked((1e4, 1e4))
    sigma_hat = torch.full((2,), 0.3, dtype=torch.float64)
    torch.testing.assert_close(
        agree_with_measurement(decoded, vague, sigma_hat, 0.03, 0.15), decoded, rtol=0, atol=1e-6
    )
    sharp, _ = masked((0.0, 0.0))
    seen = sharp.operator.kept > 0  # type: ignore[attr-defined]
    found = agree_with_measurement(decoded, sharp, sigma_hat, 3.0, 0.15)
    torch.testing.assert_close(found[seen], sharp.y_BCHW[seen], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[~seen], decoded[~seen], rtol=0, atol=1e-6)


def test_a_measurement_is_not_trusted_beyond_a_grey_level():
    exact, decoded = masked((0.0, 0.0))
    grey, _ = masked((GREY_LEVEL, GREY_LEVEL))
    sigma_hat = torch.full((2,), 0.1, dtype=torch.float64)
    one, other = (agree_with_measurement(decoded, problem, sigma_hat, 0.03, 0.15) for problem in (exact, grey))
    assert torch.equal(one, other)


def test_each_image_has_its_own_trust():
    problem, decoded = masked((0.05, 0.05))
    sigma_hat = torch.tensor([0.0, 5.0], dtype=torch.float64)
    found = agree_with_measurement(decoded, problem, sigma_hat, 0.03, 0.15)
    seen = problem.operator.kept > 0  # type: ignore[attr-defined]
    near = [(found[b] - problem.y_BCHW[b])[seen[b]].abs().mean() for b in range(2)]
    assert near[1] < 0.1 * near[0]


def test_blurred_measurements_are_met_by_sharper_images():
    """The minimum of the objective: the gradient there is zero."""
    family = make_degradation("gaussian_blur", {"kernel_size": 7})
    operator = family.bind({"blur_std": torch.tensor([0.8, 1.5], dtype=torch.float64)}, (24, 24))
    x = images(5, (24, 24))
    problem = Problem(operator.A(x), operator, torch.full((2,), 0.05).double(), lambda x: x, lambda z: z)
    decoded, sigma_hat = images(6, (24, 24)), torch.full((2,), 0.4, dtype=torch.float64)
    found = agree_with_measurement(decoded, problem, sigma_hat, 0.03, 0.15).requires_grad_()
    of_x = 0.03**2 + (0.15 * 0.4) ** 2
    cost = (problem.y_BCHW - operator.A(found)).square().sum() / 0.05**2 + (found - decoded).square().sum() / of_x
    (gradient,) = torch.autograd.grad(cost, found)
    begin = decoded.clone().requires_grad_()
    cost = (problem.y_BCHW - operator.A(begin)).square().sum() / 0.05**2
    (at_first,) = torch.autograd.grad(cost, begin)
    assert gradient.norm() < 1e-2 * at_first.norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mean"}, "fusion.name is 'mean'; give none, operator or learned"),
        ({"radius": -1}, "fusion.radius is -1"),
        ({"threshold": 0.0}, "fusion.threshold is 0.0"),
        ({"threshold": -0.1}, "fusion.threshold is -0.1"),
        ({"threshold": 1.0}, "fusion.threshold is 1.0"),
        ({"threshold": float("nan")}, "fusion.threshold is nan"),
        ({"grain": -1.0}, "fusion.grain is -1.0"),
        ({"grain": float("nan")}, "fusion.grain is nan"),
        ({"decoder_std": 0.0}, "fusion.decoder_std and fusion.gain are 0.0"),
        ({"decoder_std": float("nan")}, "give positive numbers"),
        ({"gain": -1.0}, "are 0.03 and -1.0; give positive numbers"),
        ({"gain": float("inf")}, "give positive numbers"),
    ],
)
def test_bad_settings_of_fusion_are_config_errors(settings: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        FusionConfig(**settings)


@pytest.mark.parametrize(
    ("solver", "fusion"), [("latent_dps", "none"), ("proximal", "learned"), ("unguided", "operator")]
)
def test_nothing_uses_an_operator_that_nobody_knows(solver: str, fusion: Any):
    recipe = Recipe(DegradationConfig("photo"), solver=SolverConfig(solver), fusion=FusionConfig(fusion))
    with pytest.raises(ConfigError, match=r"photo stands for unknown damage, .* use solver unguided"):
        recipe.check()


def test_learned_weights_need_the_encoder_that_learned_them():
    recipe = Recipe(start=Start(mode="full"), fusion=FusionConfig("learned"))
    with pytest.raises(ConfigError, match=r"fusion learned takes the severity encoder's weights, and start.mode full"):
        recipe.check()
