"""The denoiser where flash restorations use it: on starts from estimates, judged by what the result looks like."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flashray.degradations import make_degradation
from flashray.degradations.simulate import degrade
from flashray.errors import ConfigError
from flashray.metrics import LPIPS
from flashray.prior import LatentPrior
from flashray.severity import SeverityEncoder
from flashray.training.denoiser_task import DenoiserConfig, DenoiserTask
from flashray.training.photo_windows import random_views

REACH = (0.25, 1.0)  # of σ̂: the share of its noise that a start has
LOOKS_BELOW = 450  # timestep; of noisier latents the denoiser cannot know what the photo looks like


class StartTask(DenoiserTask):
    """Trains on batches of clean latents of whole views, as `DenoiserTask`, and on batches of flash starts.

    The loss of ε has its minimum at the mean of all images that a latent could come from, and the decoded mean is soft.
    LPIPS between D(ẑ0) and the photo favours one that looks like it (Lin & Yang 2024). A flash start is
    √ᾱ ẑ + √(1-ᾱ) ε, with the ẑ of a degraded view by one of the encoders: what ẑ lacks is not noise, and a denoiser
    that has only seen clean latents with noise takes it for a part of the image. Its loss is ‖ẑ0 - z0‖²/d. The clean
    batches are of whole views, and without LPIPS where there are encoders: they keep the denoiser of the full chain.
    ConfigError if the views are too small for LPIPS or an encoder.
    """

    def __init__(
        self,
        prior: LatentPrior,
        val_NCHW: Tensor,
        config: DenoiserConfig,
        encoders: Sequence[SeverityEncoder],
        lpips: Sequence[LPIPS],
    ) -> None:
        super().__init__(prior, val_NCHW, config)
        self.encoders, self.lpips = nn.ModuleList(encoders), nn.ModuleList(lpips)
        self.families = [make_degradation(one.degradation, one.config.degradation_settings or {}) for one in encoders]
        side = config.crop or prior.sample_size
        least = max((one.min_side for one in lpips), default=1)
        if side < least:
            raise ConfigError(f"denoiser.crop is {side} pixels; LPIPS needs {least} or more")
        for family in self.families:
            family.check_size((side, side))

    def forward(self, window_BCHW: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        from_starts = bool(self.encoders)  # without encoders all batches are clean, and LPIPS counts in them
        if from_starts and torch.rand((), generator=generator) >= self.config.start_share:
            loss = super().forward(window_BCHW, generator)["loss"]
            return {"loss": loss, "clean": loss}
        x = random_views(window_BCHW, self.config.crop or self.prior.sample_size, generator)
        with torch.no_grad():
            z0 = self.prior.encode(x.contiguous(memory_format=torch.channels_last)).float()
            if from_starts:
                start, sigma_B = self.estimates(x, generator)
                timestep_B = self.start_timesteps(sigma_B.repeat(self.draws))
            else:
                start, timestep_B = z0, self.timesteps(len(x), x.device)
        x, z0, start = (value.repeat(self.draws, 1, 1, 1) for value in (x, z0, start))
        noise = torch.randn_like(start)
        noisy = self.noisy(start, timestep_B, noise).contiguous(memory_format=torch.channels_last)
        alpha_B = self.alphas_cumprod[timestep_B]
        found, epsilon = self.prior.predict(noisy, timestep_B, alpha_B)
        terms: dict[str, Tensor] = {}
        if from_starts:
            loss = terms["start"] = (found - z0).square().mean()
        else:
            alpha = alpha_B[:, None, None, None]  # the errors of v and z0 are that of ε over these
            scale = {"v_prediction": alpha, "sample": alpha / (1 - alpha)}.get(self.prior.prediction_type, 1.0)
            loss = terms["clean"] = ((epsilon - noise).square() / scale).mean()
        visible_B = timestep_B < LOOKS_BELOW
        if self.config.lpips and visible_B.any():
            decoded = self.prior.decode(found[visible_B])
            distances = [lpips(decoded, x[visible_B]).float().mean() for lpips in self.lpips]
            terms["lpips"] = torch.stack(distances).mean()
            loss = loss + self.config.lpips * terms["lpips"] * visible_B.float().mean()
        return {"loss": loss, **terms}

    def view_side(self) -> int:
        return self.prior.sample_size if self.encoders else super().view_side()

    def estimates(self, x_BCHW: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(ẑ, [B] σ̂ of whole views) of views degraded by the family of one encoder, drawn for the batch."""
        which = int(torch.randint(len(self.families), (1,), generator=generator))
        encoder = self.encoders[which]
        assert isinstance(encoder, SeverityEncoder)
        y, _ = degrade(x_BCHW, self.families[which], encoder.noise_range, generator)
        severity = encoder(y, self.prior.encode(y).float())
        return severity.z_hat_BCHW.float(), severity.sigma_Bhw.square().mean(dim=(1, 2)).sqrt()

    def start_timesteps(self, sigma_B: Tensor) -> Tensor:
        """The timesteps whose noise is nearest to a random share of σ̂."""
        low, high = REACH
        share_B = low + (high - low) * torch.rand(len(sigma_B), device=sigma_B.device)
        ratio_T = ((1 - self.alphas_cumprod) / self.alphas_cumprod).sqrt()
        return (ratio_T - (share_B * sigma_B)[:, None]).abs().argmin(dim=1)

    def parts(self) -> list[nn.Module]:
        nets = [encoder.net for encoder in self.encoders if isinstance(encoder, SeverityEncoder)]
        return [*super().parts(), self.prior.autoencoder.decoder, *nets, *self.lpips]
