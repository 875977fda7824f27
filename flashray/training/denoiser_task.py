"""Stage two of a prior: the denoiser of its latents."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.training.loop import Task
from flashray.training.photo_windows import random_views

# LDM's "linear" schedule: squares of a line between √β_start and √β_end
SCHEDULER_CONFIG = {
    "_class_name": "DDIMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0015,
    "beta_end": 0.0195,
    "beta_schedule": "scaled_linear",
    "prediction_type": "epsilon",
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}
VALIDATION_TIMESTEPS = (10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 990)


@dataclass(frozen=True)
class DenoiserConfig:
    """A UNet on the latents: widths and attention of each resolution, residual layers a resolution.

    Attributes:
        draws: (timestep, noise) pairs that each encoded photo is trained on at once, because encoding costs as much as
            denoising.
    """

    channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 2
    dropout: float = 0.0
    draws: int = 4


def make_denoiser(config: DenoiserConfig, latent_channels: int, latent_side: int) -> UNet2DModel:
    """A freshly initialised denoiser."""
    return UNet2DModel(
        sample_size=latent_side,
        in_channels=latent_channels,
        out_channels=latent_channels,
        block_out_channels=config.channels,
        layers_per_block=config.layers,
        down_block_types=tuple("AttnDownBlock2D" if attention else "DownBlock2D" for attention in config.attention),
        up_block_types=tuple("AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(config.attention)),
        norm_num_groups=16,
        attention_head_dim=32,
        dropout=config.dropout,
    )


class DenoiserTask(Task):
    """‖ε - ε̂(√ᾱ_t E(x) + √(1-ᾱ_t) ε, t)‖² with uniform t (Ho et al. 2020, equation 14)."""

    alphas_cumprod: Tensor

    def __init__(self, prior: LatentPrior, val_NCHW: Tensor, draws: int = 1) -> None:
        super().__init__()
        self.prior, self.draws = prior, draws
        self.model = prior.denoiser
        self.val = val_NCHW
        self.register_buffer("alphas_cumprod", prior.schedule.alphas_cumprod.float(), persistent=False)

    def noisy(self, z0: Tensor, timestep_B: Tensor, noise: Tensor) -> Tensor:
        alpha = self.alphas_cumprod[timestep_B][:, None, None, None]
        return alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        with torch.no_grad():
            z0 = self.prior.encode(random_views(window_BCHW, self.prior.sample_size, generator)).float()
        # one uniform timestep a photo, and its further draws evenly spaced from it: each is uniform, and together they
        # vary less
        offset_DB = torch.arange(self.draws, device=z0.device)[:, None] / self.draws
        time_DB = (torch.rand(len(z0), device=z0.device) + offset_DB) % 1
        timestep_B = (time_DB * len(self.alphas_cumprod)).long().flatten()
        z0 = z0.repeat(self.draws, 1, 1, 1)
        noise = torch.randn_like(z0)
        prediction = self.model(self.noisy(z0, timestep_B, noise), timestep_B).sample
        return {"loss": (prediction.float() - noise).square().mean()}

    def parts(self) -> list[nn.Module]:
        return [self.model, self.prior.autoencoder.encoder]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean validation loss at each of VALIDATION_TIMESTEPS, with noise that is the same at every call."""
        device = self.alphas_cumprod.device
        generator = torch.Generator().manual_seed(0)
        totals = dict.fromkeys(VALIDATION_TIMESTEPS, 0.0)
        for x in self.val.split(64):
            z0 = self.prior.encode(x.to(device)).float()
            for timestep in VALIDATION_TIMESTEPS:
                noise = torch.randn(z0.shape, generator=generator).to(device)
                timestep_B = torch.full((len(z0),), timestep, device=device)
                error = (self.model(self.noisy(z0, timestep_B, noise), timestep_B).sample - noise).square()
                totals[timestep] += error.mean().item() * len(z0) / len(self.val)
        losses = {f"loss_t{timestep:03d}": total for timestep, total in totals.items()}
        return {"loss": sum(totals.values()) / len(totals), **losses}


def training_schedule() -> NoiseSchedule:
    """The schedule that this repository's denoisers are trained on."""
    return NoiseSchedule.from_scheduler_config(SCHEDULER_CONFIG)
