"""Where the reverse diffusion of each image starts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from flashray.errors import ConfigError

if TYPE_CHECKING:  # a configuration is read without torch, which is slow to import
    from torch import Tensor

    from flashray.schedule import NoiseSchedule


@dataclass(frozen=True)
class Start:
    """(ẑ, σ̂) ↦ start step and start latent.

    Args:
        mode: flash starts at the step that matches σ̂, full at pure noise, fixed at the same step for every image.
        severity_encoder: bundled:NAME, a folder, a hub id such as hf://owner/name@revision, a URI such as
            s3://bucket/folder, or models:/NAME@ALIAS (or models:/NAME/VERSION) of MLflow's model registry; a full chain
            needs none.
        formula: the start latent; paper is √(1-cσ̂²) ẑ + √(cσ̂²) ε (Flash-Diffusion, sample-adaptive inference),
            schedule is √ᾱ ẑ + √(1-ᾱ) ε with the ᾱ of the first update, which is the noise level that the denoiser was
            trained on there.
        c: the paper formula's noise correction; the formula schedule does not use it.
        sigma_scale: σ̂ is multiplied by it first (its square is the reference code's `var_mult`).
        strength: σ̂ is multiplied by it too, whatever the recipe's sigma_scale: 1 is the recipe as it is, less changes
            images less, and with 0 the denoiser is not used.
        step: the start step of the mode fixed.
    """

    mode: Literal["flash", "full", "fixed"] = "flash"
    severity_encoder: str = "bundled:gaussian_blur"
    formula: Literal["paper", "schedule"] = "schedule"
    c: float = 1.0
    sigma_scale: float = 1.0
    strength: float = 1.0
    step: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in ("flash", "full", "fixed"):
            raise ConfigError(f"start.mode is {self.mode!r}; give flash, full or fixed")
        if self.formula not in ("paper", "schedule"):
            raise ConfigError(f"start.formula is {self.formula!r}; give paper or schedule")
        if not 0 < self.c < math.inf or not 0 < self.sigma_scale < math.inf:
            raise ConfigError(
                f"start.c and start.sigma_scale are {self.c} and {self.sigma_scale}; give positive, finite numbers"
            )
        if not 0 <= self.strength < math.inf:
            raise ConfigError(f"start.strength is {self.strength}; give a finite number ≥ 0")
        if self.step is not None and (self.mode != "fixed" or self.step < 0):
            raise ConfigError(f"start.step is {self.step} and start.mode {self.mode}; give a step ≥ 0, with mode fixed")

    @property
    def uses_encoder(self) -> bool:
        """Whether the severity encoder is needed; a full chain starts from noise alone."""
        return self.mode != "full"

    @property
    def scale(self) -> float:
        """What σ̂ is multiplied by."""
        return self.sigma_scale * self.strength

    def falls_back(self, sigma_hat_B: Tensor) -> Tensor:
        """[B] bool: σ̂ is too large for the formula (cσ̂² ≥ 1, or not finite), and the image takes the full chain."""
        variance_B = (self.scale * sigma_hat_B).square()
        limit = self.c if self.formula == "paper" else 1.0
        return ~(limit * variance_B < 1)

    def start_step(self, sigma_hat_B: Tensor, schedule: NoiseSchedule, guided: bool = True) -> tuple[Tensor, Tensor]:
        """([B] long start steps, [B] bool fall-backs), on the CPU. The start step is the image's NFE.

        `guided` says whether the solver looks at the measurement. Without it a full chain would end at another image,
        so σ̂ is then held at the limit, and nothing falls back. A recipe refuses formula paper with it.
        """
        import torch

        full = torch.full(sigma_hat_B.shape, len(schedule), dtype=torch.long)
        if self.mode == "full":
            return full, torch.zeros_like(full, dtype=torch.bool)
        if self.mode == "fixed":
            if self.step is None:
                raise ConfigError("start.mode is fixed, and start.step is missing; give the step")
            step_B = torch.full_like(full, min(self.step, len(schedule)))
            return step_B, torch.zeros_like(full, dtype=torch.bool)
        fallback_B = self.falls_back(sigma_hat_B).cpu()
        sigma_B = (self.scale * sigma_hat_B).nan_to_num(nan=torch.inf)
        if not guided:
            fallback_B, sigma_B = torch.zeros_like(fallback_B), sigma_B.clamp(max=1.0)
        if self.scale == 0:
            return torch.where(fallback_B, full, 0), fallback_B
        step_B = schedule.start_step(sigma_B)
        return torch.where(fallback_B, full, step_B), fallback_B

    def latent(
        self, z_hat_BCHW: Tensor, sigma_hat_B: Tensor, start_step_B: Tensor, schedule: NoiseSchedule, seed_B: Tensor
    ) -> Tensor:
        """The start latents, with noise of each image's own seed; never NaN.

        An image that takes the full chain gets pure noise; an image with start step 0 gets ẑ, which is its result.
        """
        import torch

        from flashray.seeding import STREAM_START, normal

        noise = normal(seed_B, seed_B.new_zeros(len(seed_B)), tuple(z_hat_BCHW.shape[1:]), STREAM_START).to(z_hat_BCHW)
        start_step_B = start_step_B.cpu()
        if self.formula == "paper":
            variance_B = self.c * (self.scale * sigma_hat_B.double().cpu()).square()
        else:  # the first update is at step s-1, so the latent has that step's noise
            variance_B = 1 - schedule.alphas_cumprod[(start_step_B - 1).clamp(min=0)]
        variance_B = torch.where(start_step_B == 0, 0.0, variance_B.nan_to_num(nan=1.0).clamp(0, 1))
        variance_B = torch.where(start_step_B == len(schedule), 1.0, variance_B)
        variance = variance_B.to(z_hat_BCHW)[:, None, None, None]
        z_hat = torch.where(variance < 1, z_hat_BCHW, 0.0)  # a full chain must not contain a ẑ that is not finite
        return (1 - variance).sqrt() * z_hat + variance.sqrt() * noise
