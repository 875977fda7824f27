"""The mixture of damage that nobody knows; what holds for every family is in test_families."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from flashray.degradations import make_degradation
from flashray.degradations.jpeg import Jpeg
from flashray.degradations.photo import (
    AGAIN,
    ALONE,
    BLURRED,
    COMPRESSED,
    NOISY,
    PHOTON_NOISE,
    QUALITY,
    SCALED,
    UNIFORMS,
    Photo,
    PhotoDamage,
    convolve,
    only_one_kind,
    rescale,
    spreading,
)
from flashray.metrics import psnr
from flashray.seeding import STREAM_OPERATOR, uniform

SEEDS = torch.arange(40.0)


def damaged(x_BCHW: Tensor, level: float | Tensor, seed_B: Tensor, partial: float = 0.0) -> Tensor:
    level_B = torch.as_tensor(level, dtype=x_BCHW.dtype).expand(len(x_BCHW))
    return PhotoDamage(level_B, seed_B.to(x_BCHW), partial).A(x_BCHW)


@pytest.fixture(scope="module")
def x(photo: Tensor) -> Tensor:
    """One view of a real photo for each seed."""
    return photo[None, :, 40:104, 180:244].expand(len(SEEDS), -1, -1, -1)


@pytest.mark.parametrize("partial", [0.0, 1.0])
def test_no_severity_is_the_identity_bit_for_bit(x: Tensor, partial: float):
    wild = torch.cat([x, 3 * x])  # beyond [-1, 1] too
    assert torch.equal(damaged(wild, 0.0, torch.cat([SEEDS, SEEDS]), partial), wild)


def test_the_slightest_severity_does_little(x: Tensor):
    assert psnr(damaged(x, 1e-4, SEEDS), x).min() > 25  # JPEG of its best quality, at most


def test_an_images_damage_is_its_own_and_not_its_batchs(x: Tensor):
    level = torch.linspace(0, 1, len(SEEDS), dtype=torch.float64)
    together = damaged(x.double(), level, SEEDS, 0.5)
    order = torch.randperm(len(SEEDS), generator=torch.Generator().manual_seed(0))
    shuffled = damaged(x.double(), level[order], SEEDS[order], 0.5)
    torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-12)
    for n in (0, 7, 20, 39):
        alone = damaged(x[n : n + 1].double(), level[n : n + 1], SEEDS[n : n + 1], 0.5)
        torch.testing.assert_close(alone[0], together[n], rtol=0, atol=1e-12)
    assert torch.equal(together, damaged(x.double(), level, SEEDS, 0.5))


def test_seeds_differ_in_their_damage(x: Tensor):
    y = damaged(x, 0.7, SEEDS).flatten(1)
    assert len(y.unique(dim=0)) > 0.9 * len(y)  # the few that drew no damage of any kind are all the same
    share = (y != x.flatten(1)).any(dim=1).double().mean()
    assert 0.9 < share <= 1


def test_stronger_damage_hurts_more_on_average(x: Tensor):
    quality = [psnr(damaged(x, level, SEEDS), x).clamp(max=60).mean().item() for level in (0.05, 0.25, 0.5, 0.75, 1.0)]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] - quality[-1] > 8


def test_results_are_pictures(x: Tensor):
    y = damaged(x, 1.0, SEEDS, 0.5)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    assert y.abs().max() <= 1


def test_a_sharp_part_is_the_image_itself_on_one_side_alone(x: Tensor):
    y, whole = damaged(x, 1.0, SEEDS, 1.0), damaged(x, 1.0, SEEDS, 0.0)
    hurt = (whole - x).abs().mean(dim=(1, 2, 3)) > 0.02
    left = ((y - x).abs() / (whole - x).abs().clamp(min=1e-3)).mean(dim=1)[hurt]  # 0 where sharp
    assert ((y - x).abs().amax(dim=1) <= (whole - x).abs().amax(dim=1) + 1e-5).all()
    share = (left < 0.05).double().mean(dim=(1, 2))
    assert (share > 0.05).double().mean() > 0.8
    assert share.mean() < 0.9


@pytest.mark.parametrize("undamaged", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("low", [0.0, 0.4])
def test_a_share_of_the_images_is_not_damaged(undamaged: float, low: float):
    family = Photo(damage=(low, 0.9), undamaged=undamaged)
    damage = family.sample_parameters(torch.Generator().manual_seed(0), 4000)["damage"]
    assert (damage == 0).double().mean().item() == pytest.approx(undamaged, abs=0.03)
    assert ((damage == 0) | ((damage >= low) & (damage <= 0.9))).all()
    if undamaged < 1:
        assert damage[damage > 0].mean().item() == pytest.approx((low + 0.9) / 2, abs=0.02)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 70), (9, 9), (16, 16), (17, 33)])
def test_images_smaller_than_the_kernels_are_damaged_too(size: tuple[int, int]):
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(len(SEEDS), 3, *size, generator=generator) * 2 - 1
    family = make_degradation("photo")
    family.check_size(size)
    y = damaged(image, 1.0, SEEDS, 0.3)
    assert y.shape == image.shape
    assert torch.isfinite(y).all()
    assert y.abs().max() <= 1


def test_a_flat_image_survives_blur_and_scaling():
    flat = torch.full((4, 3, 20, 30), 0.3, dtype=torch.float64)
    kernel = torch.rand(4, 21, 21, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel /= kernel.sum(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(convolve(flat, kernel), flat)
    torch.testing.assert_close(rescale(flat, torch.tensor([1.0, 0.7, 0.5, 0.25])), flat)


def test_each_image_is_convolved_with_its_own_kernel_and_reflected():
    image = torch.rand(2, 3, 12, 14, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    kernel = torch.zeros(2, 5, 5, dtype=torch.float64)
    kernel[0, 2, 2] = kernel[1, 2, 0] = 1  # nothing, and the pixel two to the left
    found = convolve(image, kernel)
    assert torch.equal(found[0], image[0])
    assert torch.equal(found[1, :, :, 2:], image[1, :, :, :-2])
    assert torch.equal(found[1, :, :, :2], image[1][:, :, [2, 1]])


def test_spread_noise_keeps_its_variance_and_makes_neighbours_alike():
    kernels = spreading(torch.tensor([0.0, 0.4, 0.8, 1.2]))
    assert torch.equal(kernels[0], torch.zeros(5, 5).index_put((torch.tensor([2]), torch.tensor([2])), torch.ones(1)))
    noise = convolve(torch.randn(4, 1, 200, 200, generator=torch.Generator().manual_seed(0)), kernels)
    assert torch.allclose(noise.var(dim=(1, 2, 3)), torch.ones(4), atol=0.05)
    alike = (noise[..., 1:] * noise[..., :-1]).mean(dim=(1, 2, 3))
    assert (alike.diff() > 0.05).all()
    assert alike[0].abs() < 0.03
    assert alike[2].item() == pytest.approx(math.exp(-1 / (4 * 0.8**2)), abs=0.05)


def test_each_image_is_scaled_by_its_own_scale():
    image = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = rescale(image, torch.tensor([1.0, 0.52, 0.25]))
    assert torch.equal(found[0], image[0])
    left = [found[n].diff(dim=2).square().mean() for n in range(3)]
    assert left[0] > left[1] > left[2] > 0


def test_one_kind_of_damage_alone():
    number_BN = uniform(torch.arange(4000), UNIFORMS, STREAM_OPERATOR)
    alone_BN = only_one_kind(number_BN, 1.0)
    columns = {0: BLURRED, 1: SCALED, 5: NOISY, 9: COMPRESSED}
    there = torch.stack([alone_BN[:, index] < share for index, share in columns.items()])
    assert (there.sum(dim=0) == 1).all()
    shares = [share for share, _ in ALONE]
    assert there.double().mean(dim=1).tolist() == pytest.approx(shares, abs=0.03)
    assert (alone_BN[:, 7] > PHOTON_NOISE).all()
    assert (alone_BN[:, 16] > AGAIN).all()
    changed = (only_one_kind(number_BN, 0.3) != number_BN).any(dim=1)
    assert changed.double().mean().item() == pytest.approx(0.3, abs=0.03)
    assert only_one_kind(number_BN, 0.0) is number_BN


def test_jpeg_alone_is_the_codec_at_the_quality_of_the_severity(x: Tensor):
    seed_B = torch.arange(200)
    number_BN = only_one_kind(uniform(seed_B, UNIFORMS, STREAM_OPERATOR), 1.0)
    seed_B = seed_B[number_BN[:, 9] < COMPRESSED][:2]
    level_B = torch.tensor([0.2, 0.9])
    quality_B = QUALITY[0] + (QUALITY[1] - QUALITY[0]) * level_B
    codec = Jpeg().bind({"quality": quality_B}, (x.shape[2], x.shape[3]))
    y = PhotoDamage(level_B, seed_B, partial=0.0, alone=1.0).A(x[:2])
    assert torch.allclose(y, codec.A(x[:2]).clamp(-1, 1), atol=1e-6)
