"""Stage two of a prior: the denoiser of its latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNet2DModel
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor, nn

from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.prior.geometry import check_crop
from flashray.shards.place import Place
from flashray.training.latent_cache import cached_latents, random_crops
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
FLASH_TIMESTEPS = (10, 400)  # where flash starts lie: noise of .13 … 1.9 in units of the signal
VALIDATION_TIMESTEPS = (10, 50, 100, 200, 300, 400, 500, 600, 700, 800, 900, 990)


@dataclass(frozen=True)
class DenoiserConfig:
    """A UNet on the latents.

    Attributes:
        channels: of each resolution, from the latents' down.
        attention: whether each resolution has it.
        layers: residual layers at each resolution.
        dropout: in the residual layers, while it trains.
        draws: how many (timestep, noise) pairs each encoded photo is trained on at once; where photos are encoded in
            the loop, that costs as much as denoising does.
        prediction: what a fresh denoiser predicts; one that training starts from stays with its own.
        crop: side in pixels of the squares that it is trained on, a multiple of the latent factor; 0 is the whole size.
            Small ones show more photos in the same time. With `encoders`, of the flash starts alone.
        cache_views: how many random views of each window are encoded once and kept on disk in half precision, to be
            trained on in every pass; 0 encodes new views in every pass. For the local launcher alone.
        flash_share: share of the draws with a timestep of 10 … 400, where flash starts lie; the rest take all.
        encoders: severity encoders of this prior, each bundled:NAME, a folder, a hub id or a URI; flash starts from
            their estimates are trained on too.
        start_share: share of the batches that are flash starts, where there are encoders.
        lpips: weight of LPIPS between the decoded ẑ0 and the photo; with `encoders`, of flash starts alone.
        lpips_nets: its networks; a mean over several.
    """

    channels: tuple[int, ...] = (64, 128, 192)
    attention: tuple[bool, ...] = (False, True, True)
    layers: int = 2
    dropout: float = 0.0
    draws: int = 4
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    crop: int = 0
    cache_views: int = 0
    flash_share: float = 0.0
    encoders: tuple[str, ...] = ()
    start_share: float = 0.7
    lpips: float = 0.0
    lpips_nets: tuple[Literal["vgg", "alex"], ...] = ("vgg",)

    def __post_init__(self) -> None:
        if self.cache_views and self.needs_photos:
            raise ConfigError(
                "denoiser.encoders and denoiser.lpips need the photos, and denoiser.cache_views keeps latents alone; "
                "leave it out"
            )
        if self.lpips and not self.lpips_nets:
            raise ConfigError("denoiser.lpips_nets is empty; give vgg, alex or both")
        if not 0 <= self.start_share <= 1 or not self.lpips >= 0:
            raise ConfigError(
                f"denoiser.start_share and denoiser.lpips are {self.start_share} and {self.lpips}; give a share from 0 "
                "to 1 and a weight ≥ 0"
            )

    @property
    def needs_photos(self) -> bool:
        """Whether training sees more than latents."""
        return bool(self.encoders or self.lpips)


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


def use_plain_attention(model: nn.Module) -> None:
    """Attention as matrix products and a softmax: the CPU's fused attention has a slow backward pass."""
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())


class DenoiserTask(Task):
    """‖ε - ε̂(√ᾱ_t E(x) + √(1-ᾱ_t) ε, t)‖² (Ho et al. 2020, equation 14), or of v (Salimans & Ho 2022) or E(x)."""

    alphas_cumprod: Tensor

    def __init__(self, prior: LatentPrior, val_NCHW: Tensor, config: DenoiserConfig | None = None) -> None:
        super().__init__()
        self.prior, self.config = prior, config or DenoiserConfig()
        check_crop("denoiser.crop", self.config.crop, prior.autoencoder)
        self.draws = self.config.draws
        self.model = prior.denoiser
        self.val = val_NCHW
        self.register_buffer("alphas_cumprod", prior.schedule.alphas_cumprod.float(), persistent=False)

    def noisy(self, z0: Tensor, timestep_B: Tensor, noise: Tensor) -> Tensor:
        alpha = self.alphas_cumprod[timestep_B][:, None, None, None]
        return alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise

    def prepare(
        self, load: Callable[[], Tensor], paths: Sequence[Path | Place], storage: Path, device: str | torch.device
    ) -> Tensor:
        """The latents of all photos, where the configuration asks for them."""
        if not self.config.cache_views:
            return load()
        return cached_latents(self.prior, load, paths, self.config.cache_views, storage, device)

    def latents(self, batch: Tensor, generator: torch.Generator) -> Tensor:
        """Clean latents, in float32, of a batch of uint8 windows or of cached latents [B, C, h, w]."""
        side = self.view_side()
        if batch.dtype == torch.uint8:
            with torch.no_grad():
                return self.prior.encode(random_views(batch, side, generator)).float()
        factor = self.prior.sample_size // int(self.prior.denoiser.config.sample_size)
        return random_crops(batch, side // factor, generator).float()

    def view_side(self) -> int:
        """Side in pixels of the views of clean latents."""
        return self.config.crop or self.prior.sample_size

    def timesteps(self, count: int, device: torch.device) -> Tensor:
        """[draws · count] timesteps; the draws of one photo are evenly spaced, so that together they vary less."""
        offset_DB = torch.arange(self.draws, device=device)[:, None] / self.draws
        time_DB = (torch.rand(count, device=device) + offset_DB) % 1
        timestep_DB = time_DB * len(self.alphas_cumprod)
        if self.config.flash_share:
            low, high = FLASH_TIMESTEPS
            flash_DB = torch.rand(time_DB.shape, device=device) < self.config.flash_share
            timestep_DB = torch.where(flash_DB, low + time_DB * (high - low), timestep_DB)
        return timestep_DB.long().clamp(max=len(self.alphas_cumprod) - 1).flatten()

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        z0 = self.latents(window_BCHW, generator)
        timestep_B = self.timesteps(len(z0), z0.device)
        z0 = z0.repeat(self.draws, 1, 1, 1)
        noise = torch.randn_like(z0)
        noisy = self.noisy(z0, timestep_B, noise).contiguous(memory_format=torch.channels_last)
        prediction = self.model(noisy, timestep_B).sample.float()
        alpha = self.alphas_cumprod[timestep_B][:, None, None, None]
        velocity = alpha.sqrt() * noise - (1 - alpha).sqrt() * z0
        target = {"epsilon": noise, "v_prediction": velocity, "sample": z0}[self.prior.prediction_type]
        return {"loss": (prediction - target).square().mean()}

    def parts(self) -> list[nn.Module]:
        return [self.model, self.prior.autoencoder.encoder]

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Mean ‖ε - ε̂‖²/d at those of VALIDATION_TIMESTEPS that the schedule has, with the same noise at every call."""
        device = self.alphas_cumprod.device
        generator = torch.Generator().manual_seed(0)
        totals = {timestep: 0.0 for timestep in VALIDATION_TIMESTEPS if timestep < len(self.alphas_cumprod)}
        for x in self.val.split(64):
            z0 = self.prior.encode(x.to(device)).float()
            for timestep in totals:
                noise = torch.randn(z0.shape, generator=generator).to(device)
                timestep_B = torch.full((len(z0),), timestep, device=device)
                error = (self.prior.epsilon(self.noisy(z0, timestep_B, noise), timestep_B) - noise).square()
                totals[timestep] += error.mean().item() * len(z0) / len(self.val)
        return {"loss": sum(totals.values()) / len(totals)} | {f"loss_t{t:03d}": total for t, total in totals.items()}
