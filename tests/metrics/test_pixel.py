"""PSNR and SSIM against scikit-image, and their contract of one number per image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from flashray.images import from_uint8
from flashray.metrics import pixel, psnr, score, ssim


@pytest.fixture
def photos_BCHW() -> Tensor:
    """Three crops of the cat, not square."""
    crops = [data.chelsea()[top : top + 64, 100:180] for top in (20, 90, 150)]
    return from_uint8(torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2))


@pytest.fixture
def damaged_BCHW(photos_BCHW: Tensor) -> Tensor:
    noise = torch.randn(photos_BCHW.shape, generator=torch.Generator().manual_seed(0))
    std = torch.tensor([0.02, 0.1, 0.4]).view(3, 1, 1, 1)
    return (photos_BCHW + std * noise).clamp(-1, 1)


def test_agree_with_scikit_image(photos_BCHW: Tensor, damaged_BCHW: Tensor) -> None:
    unit = [((x + 1) / 2).permute(0, 2, 3, 1).double().numpy() for x in (photos_BCHW, damaged_BCHW)]
    expected_psnr = [peak_signal_noise_ratio(a, b, data_range=1) for a, b in zip(*unit, strict=True)]
    # scikit-image averages where the window fits: with the border reflected first, that is the whole image.
    padded = [np.pad(images, ((0, 0), (5, 5), (5, 5), (0, 0)), mode="reflect") for images in unit]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    expected_ssim = [
        structural_similarity(a, b, data_range=1, channel_axis=2, **options) for a, b in zip(*padded, strict=True)
    ]
    assert psnr(damaged_BCHW, photos_BCHW).tolist() == pytest.approx(expected_psnr, abs=1e-3)
    assert ssim(damaged_BCHW, photos_BCHW).tolist() == pytest.approx(expected_ssim, abs=1e-4)


def test_psnr_is_stated_on_the_unit_range() -> None:
    grey = torch.zeros(2, 3, 16, 16)
    brighter = grey + torch.tensor([0.2, 0.02]).view(2, 1, 1, 1)  # 0.1 and 0.01 on [0, 1]
    assert psnr(brighter, grey).tolist() == pytest.approx([20.0, 40.0], abs=1e-3)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_one_number_per_image_whatever_the_batch(metric, photos_BCHW: Tensor, damaged_BCHW: Tensor) -> None:
    together = metric(damaged_BCHW, photos_BCHW)
    alone = [metric(damaged_BCHW[i : i + 1], photos_BCHW[i : i + 1]) for i in range(3)]
    assert all(value.shape == (1,) for value in alone)
    torch.testing.assert_close(together, torch.cat(alone))
    assert together.diff().max() < 0  # more noise, a worse number


def test_equal_images(photos_BCHW: Tensor) -> None:
    assert all(math.isinf(value) for value in psnr(photos_BCHW, photos_BCHW).tolist())
    torch.testing.assert_close(ssim(photos_BCHW, photos_BCHW), torch.ones(3))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_values_outside_the_range_count_as_written(metric, photos_BCHW: Tensor, damaged_BCHW: Tensor) -> None:
    beyond = damaged_BCHW * 1.5
    torch.testing.assert_close(metric(beyond, photos_BCHW), metric(beyond.clamp(-1, 1), photos_BCHW))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_shapes_must_agree(metric) -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        metric(torch.zeros(1, 3, 16, 16), torch.zeros(2, 3, 16, 16))


def test_ssim_in_strips_is_that_of_the_whole(photo: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.stack([photo[:, :203, :90], photo[:, 200:403, 100:190]])
    ref = (x + 0.1 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    whole = ssim(x, ref)
    monkeypatch.setattr(pixel, "_AT_ONCE", 90 * 40)
    torch.testing.assert_close(ssim(x, ref), whole, rtol=0, atol=1e-6)


def test_scores_leave_out_what_an_image_is_too_small_for() -> None:
    x = torch.zeros(1, 3, 5, 40)
    assert set(score(x, x)) == {"psnr"}
    assert set(score(x[:, :, :, :3], x[:, :, :, :3], metrics=["ssim"])) == set()
    assert set(score(torch.zeros(1, 3, 6, 6), torch.zeros(1, 3, 6, 6))) == {"psnr", "ssim"}
