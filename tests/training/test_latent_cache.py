from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from flashray.prior import LatentPrior
from flashray.prior.pixel_space import SpaceToDepth
from flashray.schedule import NoiseSchedule
from flashray.training.autoencoder_task import AutoencoderConfig, make_autoencoder
from flashray.training.denoiser_task import (
    FLASH_TIMESTEPS,
    SCHEDULER_CONFIG,
    DenoiserConfig,
    DenoiserTask,
    make_denoiser,
    use_plain_attention,
)
from flashray.training.latent_cache import cached_latents, random_crops
from flashray.training.latents import latent_figures, wiener_share

SCHEDULE = NoiseSchedule.from_scheduler_config(SCHEDULER_CONFIG)
PATHS = [Path(f"photos/{n}.png") for n in range(5)]


def prior(prediction: str = "epsilon") -> LatentPrior:
    torch.manual_seed(0)
    autoencoder = make_autoencoder(AutoencoderConfig(4, (8, 16, 16), (0, 1, 1), (0, 1, 1)))
    denoiser = make_denoiser(DenoiserConfig((16, 32), (False, True), 1), 4, 8)
    return LatentPrior(autoencoder, denoiser, SCHEDULE, 32, prediction_type=prediction).eval()


def windows() -> Tensor:
    return torch.randint(0, 256, (5, 3, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_views_are_encoded_once_and_kept(tmp_path: Path):
    latents = cached_latents(prior(), windows, PATHS, 3, tmp_path, "cpu")
    assert latents.shape == (15, 4, 8, 8)
    assert latents.dtype == torch.float16
    assert torch.isfinite(latents).all()
    assert len({row.numpy().tobytes() for row in latents}) > 5  # views differ; whole windows only by mirroring
    (file,) = tmp_path.iterdir()
    assert np.load(file, mmap_mode="r").shape == latents.shape

    def never() -> Tensor:
        raise AssertionError("read again")

    assert torch.equal(cached_latents(prior(), never, PATHS, 3, tmp_path, "cpu"), latents)


def test_another_autoencoder_or_set_of_photos_has_its_own_file(tmp_path: Path):
    cached_latents(prior(), windows, PATHS, 1, tmp_path, "cpu")
    other = prior()
    other.autoencoder.encoder.conv_out.weight.data += 1
    cached_latents(other, windows, PATHS, 1, tmp_path, "cpu")
    cached_latents(prior(), windows, PATHS[:4], 1, tmp_path, "cpu")
    cached_latents(prior(), windows, [Path("others", path.name) for path in PATHS], 1, tmp_path, "cpu")
    scaled = prior()
    scaled.scale = scaled.scale * 2
    cached_latents(scaled, windows, PATHS, 1, tmp_path, "cpu")
    cached_latents(prior(), windows, PATHS, 2, tmp_path, "cpu")
    assert len(list(tmp_path.iterdir())) == 6


def test_a_broken_encoding_leaves_nothing(tmp_path: Path):
    def broken() -> Tensor:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        cached_latents(prior(), broken, PATHS, 1, tmp_path, "cpu")
    assert list(tmp_path.iterdir()) == []


def test_crops_are_squares_of_each_latent():
    place = torch.arange(64.0).view(1, 1, 8, 8).expand(50, 2, 8, 8)
    crop = random_crops(place, 3, torch.Generator().manual_seed(0))
    assert crop.shape == (50, 2, 3, 3)
    corner = crop[:, 0, 0, 0]
    assert len(corner.unique()) > 10
    offset = torch.tensor([[0, 1, 2], [8, 9, 10], [16, 17, 18]])
    assert torch.equal(crop, (corner[:, None, None] + offset)[:, None].expand(50, 2, 3, 3))
    assert random_crops(place, 9, torch.Generator()) is place


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_cached_latents_and_windows_are_trained_on_alike(prediction: str, tmp_path: Path):
    config = DenoiserConfig((16, 32), (False, True), 1, draws=2, crop=16, cache_views=2, flash_share=0.5)
    x = windows()[:, :, :32, :32].float() / 127.5 - 1
    task = DenoiserTask(prior(prediction), x, config)
    latents = task.prepare(windows, PATHS, tmp_path, "cpu")[:5]
    assert task.latents(latents, torch.Generator()).shape == task.latents(windows(), torch.Generator()).shape
    loss = task(latents, torch.Generator().manual_seed(0))["loss"]
    assert 0.3 < loss.item() < 3
    loss.backward()
    assert 0 < task.validate()["loss"] < 5


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_costs_nothing(prediction: str):
    """Of a denoiser that knows z₀."""
    alphas = SCHEDULE.alphas_cumprod.float()
    z0 = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    class Exact(torch.nn.Module):
        def forward(self, z: Tensor, t: Tensor) -> object:
            alpha, clean = alphas[t][:, None, None, None], z0.repeat(len(z) // len(z0), 1, 1, 1)
            noise = (z - alpha.sqrt() * clean) / (1 - alpha).sqrt()
            velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * clean
            return type("Output", (), {"sample": {"epsilon": noise, "sample": clean}.get(prediction, velocity)})

    task = DenoiserTask(
        LatentPrior(SpaceToDepth(), Exact(), SCHEDULE, 32, prediction_type=prediction), torch.zeros(1, 3, 8, 8)
    )
    task.latents = lambda batch, generator: z0  # type: ignore[method-assign]
    assert task(z0, torch.Generator())["loss"].item() < 1e-8


def test_part_of_the_draws_are_where_flash_starts():
    task = DenoiserTask(prior(), torch.zeros(1, 3, 32, 32), DenoiserConfig(draws=1, flash_share=0.5))
    torch.manual_seed(0)
    timestep = task.timesteps(4000, torch.device("cpu"))
    low, high = FLASH_TIMESTEPS
    inside = ((timestep >= low) & (timestep < high)).float().mean().item()
    assert inside == pytest.approx(0.5 + 0.5 * (high - low) / 1000, abs=0.03)
    assert timestep.min() < low
    assert timestep.max() > 950


def test_plain_attention_gives_the_same_answer():
    model = prior().denoiser
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    before = model(z, t).sample
    use_plain_attention(model)
    torch.testing.assert_close(model(z, t).sample, before, rtol=1e-4, atol=1e-4)


def test_figures_of_latents_are_those_of_the_card():
    x = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    figures = latent_figures(prior(), x)
    assert len(figures["roughness_each"]) == 4
    assert 0 < figures["roughness"] < 2
    assert set(figures["wiener_share"]) == {"0.46", "0.79"}
    assert all(share > 0.5 for share in figures["wiener_share"].values())  # it has learned nothing


def test_an_elementwise_wiener_filter_leaves_what_it_leaves():
    schedule = SCHEDULE
    alphas = schedule.alphas_cumprod.float()
    variance = torch.tensor([4.0, 0.25, 1.0])[:, None, None]

    class Wiener(torch.nn.Module):
        def forward(self, z: Tensor, t: Tensor) -> object:
            alpha = alphas[t][:, None, None, None]
            z0 = alpha.sqrt() * variance / (alpha * variance + 1 - alpha) * z
            return type("Output", (), {"sample": (z - alpha.sqrt() * z0) / (1 - alpha).sqrt()})

    z = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * variance.sqrt()
    share = wiener_share(LatentPrior(SpaceToDepth(), Wiener(), schedule, 32), z, 100)
    assert share == pytest.approx(1, abs=0.02)
