"""Training of a denoiser on flash starts and by what decoded results look like."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior import LatentPrior, load_prior
from flashray.severity import load_severity_encoder
from flashray.training.denoiser_task import DenoiserConfig
from flashray.training.photo_windows import random_views
from flashray.training.start_task import LOOKS_BELOW, REACH, StartTask
from tests.conftest import TinyModels


class Squares(nn.Module):
    """A distance in the form of LPIPS: [B] mean squared differences."""

    min_side = 16

    def forward(self, y_BCHW: Tensor, x_BCHW: Tensor) -> Tensor:
        return (y_BCHW - x_BCHW).square().mean(dim=(1, 2, 3))


@pytest.fixture
def prior(tiny_models: TinyModels) -> LatentPrior:
    prior = load_prior(tiny_models.prior)
    prior.denoiser.requires_grad_(True)
    return prior


@pytest.fixture
def windows(photo: Tensor) -> Tensor:
    """Eight uint8 windows of 48 pixels."""
    crops = [photo[:, 40 * n : 40 * n + 48, 30 * n : 30 * n + 48] for n in range(8)]
    return ((torch.stack(crops) + 1) * 127.5).round().to(torch.uint8)


def task_of(prior: LatentPrior, models: TinyModels, photo: Tensor, **settings: object) -> StartTask:
    config = DenoiserConfig(**({"encoders": (models.encoder,), "draws": 1} | settings))  # type: ignore[arg-type]
    encoders = [load_severity_encoder(source) for source in config.encoders]
    distances = [Squares()] if config.lpips else []
    return StartTask(prior, photo[None, :, :32, :32], config, encoders, distances)  # type: ignore[arg-type]


def generator(seed: int = 0) -> torch.Generator:
    torch.manual_seed(seed)
    return torch.Generator().manual_seed(seed)


def test_a_start_has_a_share_of_the_noise_that_sigma_hat_says(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor
) -> None:
    task = task_of(prior, tiny_models, photo)
    noise_T = ((1 - task.alphas_cumprod) / task.alphas_cumprod).sqrt()
    sigma_B = torch.linspace(0.3, 3.0, 200)
    found_B = task.start_timesteps(sigma_B)
    least_B, most_B = ((noise_T - share * sigma_B[:, None]).abs().argmin(dim=1) for share in REACH)
    assert (found_B >= least_B).all()
    assert (found_B <= most_B).all()
    assert (least_B < most_B).any()
    assert len(set(found_B.tolist())) > 3


def test_starts_alone_clean_latents_alone_or_both(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, windows: Tensor
) -> None:
    kinds = {share: set[str]() for share in (0.0, 0.5, 1.0)}
    for share, seen in kinds.items():
        task, draw = task_of(prior, tiny_models, photo, start_share=share), generator()
        for _ in range(12):
            seen |= set(task(windows, draw))
    assert kinds == {0.0: {"loss", "clean"}, 0.5: {"loss", "clean", "start"}, 1.0: {"loss", "start"}}


@pytest.mark.parametrize("predicted", ["epsilon", "v_prediction", "sample"])
def test_the_clean_loss_is_that_of_the_denoiser_task(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, windows: Tensor, predicted: str
) -> None:
    prior.prediction_type = predicted
    task = task_of(prior, tiny_models, photo, encoders=())
    draw = generator(3)
    found = task(windows, draw)["loss"]
    draw = generator(3)
    x = random_views(windows, prior.sample_size, draw)
    z0 = prior.encode(x.contiguous(memory_format=torch.channels_last)).contiguous()
    timestep_B = task.timesteps(len(x), x.device)
    noise = torch.randn_like(z0)
    alpha = task.alphas_cumprod[timestep_B][:, None, None, None]
    velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * z0
    wanted = {"epsilon": noise, "v_prediction": velocity, "sample": z0}[predicted]
    expected = (prior.denoiser(task.noisy(z0, timestep_B, noise), timestep_B).sample - wanted).square().mean()
    torch.testing.assert_close(found, expected)


def test_clean_batches_beside_starts_are_of_whole_views_and_without_looks(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []
    encode = prior.encode
    monkeypatch.setattr(prior, "encode", lambda x: seen.append(tuple(x.shape[2:])) or encode(x))  # type: ignore[func-returns-value]
    assert set(task_of(prior, tiny_models, photo, start_share=0.0, crop=16, lpips=1.0)(windows, generator())) == {
        "loss",
        "clean",
    }
    assert set(seen) == {(prior.sample_size, prior.sample_size)}
    seen.clear()
    task_of(prior, tiny_models, photo, start_share=1.0, crop=16, lpips=1.0)(windows, generator())
    assert set(seen) == {(16, 16)}


def test_looks_count_where_noise_is_weak(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, windows: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of(prior, tiny_models, photo, encoders=(), lpips=2.0)
    terms = task(windows, generator())  # this prior has 20 timesteps
    assert LOOKS_BELOW > 20
    torch.testing.assert_close(terms["loss"], terms["clean"] + 2 * terms["lpips"])
    monkeypatch.setattr("flashray.training.start_task.LOOKS_BELOW", 0)
    assert set(task(windows, generator())) == {"loss", "clean"}


def test_training_brings_starts_nearer_to_the_photo(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, windows: Tensor
) -> None:
    task = task_of(prior, tiny_models, photo, start_share=1.0, lpips=1.0)
    optimizer = torch.optim.Adam(task.model.parameters(), lr=2e-3)
    losses, draw = [], generator()
    for _ in range(60):
        loss = task(windows, draw)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_looks_alone_teach_the_denoiser(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, windows: Tensor
) -> None:
    task = task_of(prior, tiny_models, photo, start_share=1.0, lpips=1.0)
    task(windows, generator())["lpips"].backward()
    assert max(parameter.grad.abs().max() for parameter in task.model.parameters() if parameter.grad is not None) > 0


@pytest.mark.parametrize(("crop", "message"), [(8, "LPIPS needs 16 or more"), (30, "give a multiple of 4")])
def test_views_that_do_not_fit_are_refused(
    prior: LatentPrior, tiny_models: TinyModels, photo: Tensor, crop: int, message: str
) -> None:
    with pytest.raises(ConfigError, match=f"crop is {crop} pixels; {message}"):
        task_of(prior, tiny_models, photo, lpips=1.0, crop=crop)


@pytest.mark.parametrize("settings", [{"start_share": 1.5}, {"lpips": -1.0}, {"lpips": float("nan")}])
def test_shares_and_weights_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="give a share from 0 to 1 and a weight ≥ 0"):
        DenoiserConfig(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{"encoders": ("bundled:photo",)}, {"lpips": 1.0}])
def test_kept_latents_are_not_enough(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"denoiser\.cache_views keeps latents alone; leave it out"):
        DenoiserConfig(cache_views=2, **settings)  # type: ignore[arg-type]
    assert dataclasses.replace(DenoiserConfig(), cache_views=2).cache_views == 2


def test_lpips_needs_a_network() -> None:
    with pytest.raises(ConfigError, match="give vgg, alex or both"):
        DenoiserConfig(lpips=1.0, lpips_nets=())
