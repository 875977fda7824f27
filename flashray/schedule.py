"""Noise schedules: ᾱ over N steps, respacing, and the start step that matches a severity."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashray.errors import ConfigError


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving noise schedule of N steps, z_i = √ᾱ_i z₀ + √(1-ᾱ_i) ε, noisier as i grows.

    Attributes:
        timesteps: [N] long, ascending; the denoiser's time at step i.
        alphas_cumprod: [N] float64, ᾱ_i in (0, 1), descending.
        alphas_cumprod_prev: [N] float64, ᾱ after an update at step i.

    An image that starts at step s is updated at i = s-1, …, 0: its NFE is s, and the full chain's is N.
    """

    timesteps: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """The whole chain: every timestep is a step, and the last update ends at the data (ᾱ = 1)."""
        alphas = alphas_cumprod.detach().to("cpu", torch.float64)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        return cls(torch.arange(len(alphas)), alphas, previous)

    @classmethod
    def from_scheduler_config(cls, config: dict[str, Any]) -> NoiseSchedule:
        """Read a diffusers scheduler config: `linear`, `scaled_linear`, `squaredcos_cap_v2` or `trained_betas`.

        LDM's "linear" schedule (squares of a line between √β_start and √β_end) is diffusers' `scaled_linear`.
        """
        steps = int(config.get("num_train_timesteps", 1000))
        start, end = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        kind = config.get("beta_schedule", "linear")
        if config.get("rescale_betas_zero_snr"):
            raise ConfigError("scheduler: rescale_betas_zero_snr is not supported; ᾱ must stay above 0")
        if config.get("trained_betas") is not None:
            betas = torch.tensor(config["trained_betas"], dtype=torch.float64)
        elif kind == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        elif kind == "scaled_linear":
            betas = torch.linspace(start**0.5, end**0.5, steps, dtype=torch.float64) ** 2
        elif kind == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021, eq. 17
            time = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
            alpha_bar = torch.cos((time + 0.008) / 1.008 * torch.pi / 2) ** 2
            betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)
        else:
            raise ConfigError(
                f"scheduler: beta_schedule {kind!r} is not known; "
                "use linear, scaled_linear, squaredcos_cap_v2 or trained_betas"
            )
        return cls.from_alphas_cumprod(torch.cumprod(1 - betas, dim=0))

    def __len__(self) -> int:
        return len(self.timesteps)

    def respaced(self, steps: int, set_alpha_to_one: bool = True) -> NoiseSchedule:
        """Keep `steps` of the N steps, evenly spaced as in LDM's DDIM sampler (timesteps 1, 1 + N/steps, …).

        Args:
            steps: 1 … N; N returns the schedule itself.
            set_alpha_to_one: whether the last update ends at the data (ᾱ = 1) or, as in LDM's sampler, at ᾱ_0.
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise ConfigError(f"solver.steps is {steps}; the prior's schedule has {total} steps, so give 1 … {total}")
        if steps == total:
            return self
        index = (torch.arange(steps) * total // steps + 1).clamp(max=total - 1)
        alphas = self.alphas_cumprod[index]
        last = torch.ones(1, dtype=torch.float64) if set_alpha_to_one else self.alphas_cumprod[:1]
        return NoiseSchedule(self.timesteps[index], alphas, torch.cat([last, alphas[:-1]]))

    def snr(self) -> Tensor:
        """[N] signal-to-noise ratios ᾱ/(1-ᾱ)."""
        return self.alphas_cumprod / (1 - self.alphas_cumprod)

    def start_step(self, sigma_B: Tensor) -> Tensor:
        """The step whose SNR is nearest to 1/σ̂²: argmin_i |1/σ̂² - ᾱ_i/(1-ᾱ_i)|.

        Flash-Diffusion, sample-adaptive inference.

        Args:
            sigma_B: [B] predicted standard deviations of the latent error, ≥ 0; 0 starts at step 0, +inf at the last.

        Returns:
            [B] long, the start steps, each also the image's NFE.
        """
        target_B = 1 / sigma_B.detach().to("cpu", torch.float64).square().clamp(min=1e-30)
        # the argmin without a [B, N] matrix: a sorted search in the ascending SNRs, then the nearer of both neighbours
        snr = self.snr()
        above_B = len(snr) - 1 - torch.searchsorted(snr.flip(0), target_B).clamp(max=len(snr) - 1)
        below_B = (above_B + 1).clamp(max=len(snr) - 1)
        nearer_below_B = (target_B - snr[below_B]).abs() < (target_B - snr[above_B]).abs()
        return torch.where(nearer_below_B, below_B, above_B)
