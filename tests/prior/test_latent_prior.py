from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LDMPipeline
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior import LatentPrior, hash_weights, load_prior
from flashray.schedule import NoiseSchedule
from tests.support.models import AUTOENCODERS, SIDE, dc, edit_json, kl, save_pipeline, scheduler, unet, vq


@pytest.fixture(scope="module")
def x() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("name", ["vqvae", "vae", "autoencoder"])
@pytest.mark.parametrize("kind", AUTOENCODERS)
def test_pipeline_folders_open_whatever_their_autoencoder(kind: str, name: str, x: Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, AUTOENCODERS[kind](), name)))
    assert type(prior.autoencoder).__name__ == kind
    assert prior.sample_size == SIDE
    z = prior.encode(x)
    assert z.shape == (2, 4, SIDE // 4, SIDE // 4)
    assert prior.decode(z).shape == x.shape
    assert prior.epsilon(z, torch.tensor([0, 999])).shape == z.shape
    assert len(prior.schedule) == 1000
    assert not prior.training
    assert not any(parameter.requires_grad for parameter in prior.parameters())
    assert prior.name == str(tmp_path)


def test_a_pipeline_that_diffusers_saved_opens(x: Tensor, tmp_path: Path):
    LDMPipeline(vqvae=vq(scaling_factor=0.7), unet=unet(), scheduler=scheduler()).save_pretrained(tmp_path)
    prior = load_prior(str(tmp_path))
    torch.testing.assert_close(prior.encode(x), vq().encode(x).latents * 0.7)
    assert torch.isfinite(prior.decode(prior.encode(x))).all()


@pytest.mark.parametrize(
    ("kind", "factor"), [("AutoencoderDC", 2.5), ("AutoencoderKL", 0.18215), ("VQModel", 1.0)], ids=lambda v: str(v)
)
def test_latents_are_scaled_by_the_configs_factor_or_the_classes_own(
    kind: str, factor: float, x: Tensor, tmp_path: Path
):
    """A VQModel's config that says nothing means 1, though diffusers fills in 0.18215 (its issue 6725)."""
    autoencoder = AUTOENCODERS[kind]()
    save_pipeline(tmp_path, autoencoder)
    if kind != "AutoencoderDC":
        edit_json(tmp_path / "vqvae" / "config.json", scaling_factor=None)
    prior = load_prior(str(tmp_path))
    torch.testing.assert_close(prior.scale.flatten(), torch.tensor([factor]))
    encoded = autoencoder.eval().encode(x)
    raw = {
        "AutoencoderDC": lambda: encoded.latent,
        "AutoencoderKL": lambda: encoded.latent_dist.mode(),
        "VQModel": lambda: encoded.latents,
    }[kind]()
    torch.testing.assert_close(prior.encode(x), raw * factor, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        prior.decode(prior.encode(x)), autoencoder.decode(raw).sample, rtol=1e-4, atol=1e-5
    )  # the scale cancels


def test_shift_factor_is_subtracted_before_scaling(x: Tensor, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, kl(scaling_factor=0.5, shift_factor=0.25))))
    torch.testing.assert_close(prior.encode(x), (kl().encode(x).latent_dist.mode() - 0.25) * 0.5)


def test_mean_and_std_of_each_channel_in_a_config_are_taken_as_diffusers_takes_them(x: Tensor, tmp_path: Path):
    mean, std = [0.1, -0.2, 0.3, 0.0], [0.5, 1.0, 2.0, 4.0]
    prior = load_prior(str(save_pipeline(tmp_path, kl(scaling_factor=0.5, latents_mean=mean, latents_std=std))))
    z = prior.encode(x)
    mean_C11, std_C11 = (torch.tensor(one)[:, None, None] for one in (mean, std))
    latent = kl().encode(x).latent_dist.mode()
    torch.testing.assert_close(z * std_C11 / 0.5 + mean_C11, latent)
    torch.testing.assert_close(prior.decode(z), kl().decode(latent).sample, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"latents_mean": [0.0] * 3, "latents_std": [1.0] * 4}, "latents_mean must be a list of 4 finite numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0] * 5}, "latents_std must be a list of 4 finite numbers"),
        ({"latents_mean": [0.0] * 4, "latents_std": [1.0, 1.0, 0.0, 1.0]}, "latents_std must be above 0"),
    ],
)
def test_a_config_whose_means_or_stds_do_not_fit_is_refused(settings: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=rf"{tmp_path}/vqvae: {words}"):
        load_prior(str(save_pipeline(tmp_path, kl(**settings))))


def test_one_of_mean_and_std_alone_is_passed_over_as_diffusers_does(tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, kl(scaling_factor=0.5, latents_std=[2.0] * 4))))
    assert (prior.scale.item(), prior.shift.item()) == (0.5, 0.0)


def test_latent_statistics_of_each_channel_come_before_the_config(x: Tensor, tmp_path: Path):
    save_pipeline(tmp_path, dc())
    plain = load_prior(str(tmp_path)).encode(x) / 2.5
    mean, std = plain.mean(dim=(0, 2, 3)), plain.std(dim=(0, 2, 3))
    (tmp_path / "latent_statistics.json").write_text(json.dumps({"mean": mean.tolist(), "std": std.tolist()}))
    prior = load_prior(str(tmp_path))
    z = prior.encode(x)
    torch.testing.assert_close(z.mean(dim=(0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(z.std(dim=(0, 2, 3)), torch.ones(4), rtol=1e-5, atol=0)
    torch.testing.assert_close(prior.decode(z), dc().decode(plain).sample, rtol=1e-4, atol=1e-5)


class Exact(nn.Module):
    """The denoiser of a data set of one latent, in three parametrisations."""

    def __init__(self, z0: Tensor, schedule: NoiseSchedule, prediction_type: str) -> None:
        super().__init__()
        self.z0, self.alphas, self.kind = z0, schedule.alphas_cumprod.float(), prediction_type

    def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
        alpha = self.alphas[timestep][:, None, None, None]
        epsilon = (z - alpha.sqrt() * self.z0) / (1 - alpha).sqrt()
        answers = {
            "epsilon": epsilon,
            "v_prediction": alpha.sqrt() * epsilon - (1 - alpha).sqrt() * self.z0,
            "sample": self.z0.expand_as(z),
        }
        return SimpleNamespace(sample=answers[self.kind])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_every_parametrisation_gives_the_noise(prediction_type: str):
    schedule = NoiseSchedule.from_scheduler_config(dict(scheduler().config))
    z0, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timestep = torch.tensor([3, 50, 300, 700, 999])
    alpha = schedule.alphas_cumprod[timestep].float()[:, None, None, None]
    prior = LatentPrior(
        nn.Identity(), Exact(z0, schedule, prediction_type), schedule, SIDE, prediction_type=prediction_type
    )
    z = alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise
    torch.testing.assert_close(prior.epsilon(z, timestep), noise, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_the_prediction_type_is_read_from_the_scheduler(prediction_type: str, tmp_path: Path):
    prior = load_prior(str(save_pipeline(tmp_path, dc(), prediction_type=prediction_type)))
    assert prior.prediction_type == prediction_type


def test_a_denoiser_that_also_predicts_variances_is_cut_to_its_first_half():
    class Double(nn.Module):
        def forward(self, z: Tensor, timestep: Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=torch.cat([z, z + 100], dim=1))

    prior = LatentPrior(nn.Identity(), Double(), NoiseSchedule.from_scheduler_config({}), SIDE)
    z = torch.randn(2, 4, 8, 8)
    assert torch.equal(prior.epsilon(z, torch.tensor([1, 2])), z)


def test_diffusers_opens_our_layout_and_samples(tmp_path: Path):
    save_pipeline(tmp_path, dc())
    pipeline = LDMPipeline.from_pretrained(tmp_path)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(num_inference_steps=3, output_type="np", generator=torch.Generator().manual_seed(0)).images
    assert images.shape == (1, SIDE, SIDE, 3)
    assert np.isfinite(images).all()


def test_the_hash_is_of_weights_and_configs_and_of_nothing_else(tmp_path: Path):
    save_pipeline(tmp_path / "a", dc())
    save_pipeline(tmp_path / "b", dc())
    first = hash_weights(tmp_path / "a")
    assert first == hash_weights(tmp_path / "b")
    for name in ("README.md", "card.json", "training.json", "samples.png"):
        (tmp_path / "b" / name).write_text("{}")
    assert first == hash_weights(tmp_path / "b")
    edit_json(tmp_path / "b" / "vqvae" / "config.json", scaling_factor=2.6)
    assert first != hash_weights(tmp_path / "b")
    assert load_prior(str(tmp_path / "a")).sha256 == first


def remove(path: str) -> Any:
    return lambda folder: (folder / path).unlink()


def only_pickles(folder: Path) -> None:
    (folder / "vqvae" / "diffusion_pytorch_model.safetensors").unlink()
    dc().save_pretrained(folder / "vqvae", safe_serialization=False)


BROKEN = {
    "no scheduler": (remove("scheduler/scheduler_config.json"), r"scheduler_config\.json is missing"),
    "no denoiser": (remove("unet/config.json"), r"none of unet/config\.json, denoiser/config\.json"),
    "no autoencoder": (remove("vqvae/config.json"), r"none of vqvae/config\.json, vae/config\.json"),
    "no weights": (remove("unet/diffusion_pytorch_model.safetensors"), r"unet: .*safetensors is missing"),
    "pickles only": (only_pickles, r"vqvae: .*safetensors is missing; save the pipeline with safe_serialization=True"),
    "unknown class": (
        lambda folder: edit_json(folder / "unet" / "config.json", _class_name="Transformer2DModel"),
        r"'Transformer2DModel' cannot be used; flashray opens AutoencoderDC",
    ),
    "no class": (lambda folder: edit_json(folder / "unet" / "config.json", _class_name=None), r"class None cannot"),
    "not a model": (
        lambda folder: edit_json(folder / "unet" / "config.json", _class_name="LDMPipeline"),
        r"'LDMPipeline' cannot be used",
    ),
    "prediction": (
        lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", prediction_type="flow"),
        r"prediction_type 'flow' is not known",
    ),
    "schedule": (
        lambda folder: edit_json(folder / "scheduler" / "scheduler_config.json", beta_schedule="sigmoid"),
        r"beta_schedule 'sigmoid' is not known",
    ),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_broken_pipelines_are_refused_by_name(damage: str, tmp_path: Path):
    damaging, message = BROKEN[damage]
    damaging(save_pipeline(tmp_path, dc()))
    with pytest.raises(ConfigError, match=message):
        load_prior(str(tmp_path))


@pytest.mark.parametrize("source", ["/no/such/folder", "./nothing", "~/nothing", "nothing", "a/b/c"])
def test_missing_folders_are_refused_without_asking_the_hub(source: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(ConfigError, match="no such folder"):
        load_prior(source)
