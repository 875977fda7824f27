from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from flashray.errors import ConfigError
from flashray.training.autoencoder_task import AutoencoderConfig, AutoencoderTask, make_autoencoder
from flashray.training.latents import (
    add_latent_noise,
    halve_image,
    halve_latent,
    latent_statistics,
    neighbour_roughness,
    roughness,
    standardise,
    unit_penalty,
)

SMALL = AutoencoderConfig(4, (8, 16, 16), (0, 1, 1), (0, 1, 1), crop=32, lpips=0.0)


def photos(count: int = 6, side: int = 32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=generator) * 2 - 1
    return F.interpolate(coarse, scale_factor=4, mode="bilinear")


def test_standardised_latents_have_unit_channels_whatever_their_scale():
    z = torch.randn(4, 3, 8, 8) * torch.tensor([1e-1, 1.0, 50.0])[:, None, None] + 7
    unit = standardise(z)
    assert unit.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(unit.var(dim=(0, 2, 3), correction=0), torch.ones(3), rtol=1e-3, atol=0)
    torch.testing.assert_close(standardise(3 * z - 2), unit, rtol=1e-3, atol=1e-3)


def test_roughness_is_one_minus_the_correlation_of_neighbours():
    white = torch.randn(8, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    smooth = standardise(F.avg_pool2d(white, 5, 1, 2))
    assert roughness(standardise(white)).item() == pytest.approx(1, abs=0.02)
    assert neighbour_roughness(white).tolist() == pytest.approx([1] * 4, abs=0.03)
    # a mean of 5 shares 4 of its values with its neighbour's
    assert roughness(smooth).item() == pytest.approx(0.2, abs=0.03)
    assert neighbour_roughness(smooth).tolist() == pytest.approx([0.2] * 4, abs=0.04)


def test_noise_is_drawn_once_an_image_and_at_most_so_strong():
    torch.manual_seed(0)
    z = torch.zeros(200, 2, 16, 16)
    std = (add_latent_noise(z, 1.0) - z).flatten(1).std(dim=1)
    assert std.max() < 1.1
    assert std.min() < 0.1
    assert std.mean().item() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(add_latent_noise(z, 0.0), z)


def test_halving():
    assert halve_latent(torch.arange(16.0).view(1, 1, 4, 4)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert halve_image(torch.full((2, 3, 8, 8), 0.5)).shape == (2, 3, 4, 4)
    torch.testing.assert_close(halve_image(torch.full((2, 3, 8, 8), 0.5)), torch.full((2, 3, 4, 4), 0.5))


def test_statistics_are_those_of_all_latents():
    torch.manual_seed(0)
    model = make_autoencoder(SMALL)
    x = photos(40)  # more than are encoded at once
    mean, std = latent_statistics(model, x, "cpu")
    z = model.encode(x).latent
    torch.testing.assert_close(mean, z.mean(dim=(0, 2, 3)), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(std, z.std(dim=(0, 2, 3)), rtol=1e-2, atol=1e-4)


def test_unit_latents_cost_nothing_and_others_do_in_both_directions():
    z = standardise(torch.randn(4, 3, 16, 16))
    assert unit_penalty(z).item() < 1e-6
    assert unit_penalty(z + 0.5).item() == pytest.approx(0.25, rel=1e-2)
    assert unit_penalty(2 * z).item() == pytest.approx(unit_penalty(z / 2).item(), rel=1e-2)
    assert unit_penalty(2 * z).item() == pytest.approx(1.386**2, rel=1e-2)


def test_a_model_without_shortcut_has_none():
    assert not make_autoencoder(SMALL).config.encoder_out_shortcut
    assert not make_autoencoder(SMALL).config.decoder_in_shortcut
    assert make_autoencoder(AutoencoderConfig(4, (8, 16, 16), (0, 1, 1), (0, 1, 1), shortcut=True)).encoder.out_shortcut


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, {"unit"}),
        ({"unit": 0.0}, set()),
        ({"smoothness": 0.1}, {"unit", "roughness"}),
        ({"equivariance": 0.25}, {"unit", "equivariance"}),
    ],
)
def test_each_term_is_reported_and_reaches_the_encoder(options: dict, terms: set[str]):
    torch.manual_seed(0)
    config = AutoencoderConfig(**(vars(SMALL) | options))
    task = AutoencoderTask(make_autoencoder(config), config, None, photos())
    windows = ((photos(side=40) + 1) * 127.5).round().byte()
    found = task(windows, torch.Generator().manual_seed(0))
    assert set(found) == {"loss", "l1", "mse"} | terms
    found["loss"].backward()
    assert task.model.encoder.conv_out.weight.grad.abs().sum() > 0
    assert {"psnr", "roughness"} <= set(task.validate())


def test_crops_that_are_no_whole_latents_are_refused():
    config = AutoencoderConfig(**(vars(SMALL) | {"crop": 30}))
    with pytest.raises(ConfigError, match=r"autoencoder\.crop is 30 pixels; give a multiple of 4, the latent factor"):
        AutoencoderTask(make_autoencoder(config), config, None, photos())


def test_the_decoder_alone_is_trained():
    torch.manual_seed(0)
    config = AutoencoderConfig(**(vars(SMALL) | {"part": "decoder"}))
    task = AutoencoderTask(make_autoencoder(config), config, None, photos())
    task(((photos(side=40) + 1) * 127.5).byte(), torch.Generator().manual_seed(0))["loss"].backward()
    assert all(parameter.grad is None for parameter in task.model.encoder.parameters())
    assert task.model.decoder.conv_in.weight.grad.abs().sum() > 0
