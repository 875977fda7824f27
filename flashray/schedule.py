"""Noise schedules: ᾱ over N steps, respacing, and the start step that matches a severity."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from flashray.errors import ConfigError

MOST_STEPS = 10_000  # of a whole chain
Spacing = Literal["leading", "trailing"]  # of the steps that are kept
_BETAS = {"beta_start", "beta_end", "beta_schedule", "trained_betas"}


@dataclass(frozen=True)
class NoiseSchedule:
    """A variance-preserving noise schedule of N steps, z_i = √ᾱ_i z₀ + √(1-ᾱ_i) ε, noisier as i grows.

    An image that starts at step s is updated at i = s-1, …, 0: its NFE is s, and the full chain's is N.
    """

    timesteps: Tensor  # [N] ascending; the denoiser's own time of step i, long, or float for a flow
    alphas_cumprod: Tensor  # [N] float64, ᾱ_i in (0, 1), descending; 0 where a flow begins
    alphas_cumprod_prev: Tensor  # [N] float64, ᾱ of the step that an update at i leads to

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Tensor) -> NoiseSchedule:
        """The whole chain: every timestep is a step, and the last update ends at the data (ᾱ = 1)."""
        alphas = alphas_cumprod.detach().to("cpu", torch.float64)
        previous = torch.cat([torch.ones(1, dtype=torch.float64), alphas[:-1]])
        return cls(torch.arange(len(alphas)), alphas, previous)

    @classmethod
    def from_scheduler_config(cls, config: dict[str, Any]) -> NoiseSchedule:
        """Read a diffusers scheduler config: `linear`, `scaled_linear`, `squaredcos_cap_v2`, `trained_betas`, a flow.

        LDM's "linear" schedule (squares of a line between √β_start and √β_end) is diffusers' `scaled_linear`. A flow's
        config gives a `FlowSchedule`. ConfigError names the key of a value that is unknown or leads to no schedule.
        """
        if is_flow(config):
            return FlowSchedule.from_scheduler_config(config)
        if "_class_name" in config and not _BETAS & set(config):
            raise ConfigError(
                f"scheduler: a {config['_class_name']} says nothing of β; flashray takes variance-preserving noise "
                "(DDPM, DDIM and their like) and flow matching"
            )
        steps = _step_count(config)
        start, end = finite_number(config, "beta_start", 1e-4), finite_number(config, "beta_end", 0.02)
        kind = config.get("beta_schedule", "linear")
        if config.get("rescale_betas_zero_snr"):
            raise ConfigError("scheduler: rescale_betas_zero_snr is not supported; ᾱ must stay above 0")
        if config.get("trained_betas") is not None:
            betas = _given_betas(config["trained_betas"])
        elif kind == "linear":
            betas = torch.linspace(start, end, steps, dtype=torch.float64)
        elif kind == "scaled_linear":
            # a negative one would give NaN here: the check below would not name it
            if min(start, end) < 0:
                raise ConfigError(f"scheduler: beta_start {start:g} and beta_end {end:g} must lie in (0, 1)")
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
        if not ((betas > 0) & (betas < 1)).all():  # NaN is in no interval
            raise ConfigError("scheduler: every β (beta_start … beta_end, or trained_betas) must lie in (0, 1)")
        alphas_cumprod = torch.cumprod(1 - betas, dim=0)
        if not alphas_cumprod[-1] > 0:
            raise ConfigError(f"scheduler: {len(betas)} such β leave no signal at all; ᾱ must stay above 0")
        return cls.from_alphas_cumprod(alphas_cumprod)

    def __len__(self) -> int:
        return len(self.timesteps)

    def respaced(self, steps: int, set_alpha_to_one: bool = True, spacing: Spacing = "leading") -> NoiseSchedule:
        """Keep `steps` of the N steps, evenly spaced.

        Args:
            steps: 1 … N; N returns the schedule itself.
            set_alpha_to_one: whether the last update ends at the data (ᾱ = 1) or, as in LDM's sampler, at ᾱ_0.
            spacing: leading as in LDM's DDIM sampler, timesteps 1, 1 + N/steps, …; trailing is N/steps - 1,
                2N/steps - 1, …, N-1 (Lin et al. 2024, table 2).
        """
        total = len(self)
        if not 1 <= steps <= total:
            raise ConfigError(f"solver.steps is {steps}; the prior's schedule has {total} steps, so give 1 … {total}")
        if steps == total:
            return self
        if spacing == "trailing":
            index = (torch.arange(1, steps + 1, dtype=torch.float64) * total / steps).round().long() - 1
        else:
            index = (torch.arange(steps) * total // steps + 1).clamp(max=total - 1)
        alphas = self.alphas_cumprod[index]
        last = torch.ones(1, dtype=torch.float64) if set_alpha_to_one else self.alphas_cumprod[:1]
        return NoiseSchedule(self.timesteps[index], alphas, torch.cat([last, alphas[:-1]]))

    def snr(self, timestep: Tensor | None = None) -> Tensor:
        """Signal-to-noise ratios ᾱ/(1-ᾱ), float64, of all steps or at the denoiser's own times, of any shape.

        Between two of the schedule's times the SNR's logarithm goes in a straight line; beyond its ends it stays.
        """
        ratios = self.alphas_cumprod / (1 - self.alphas_cumprod)
        if timestep is None:
            return ratios
        return _interpolate(self.timesteps.double(), ratios.log(), timestep.detach().to("cpu", torch.float64)).exp()

    def snr_inverse(self, snr: Tensor) -> Tensor:
        """The denoiser's time, float64, at which the SNR has a value ≥ 0; the inverse of `snr`, shape kept."""
        ratios = self.alphas_cumprod / (1 - self.alphas_cumprod)
        wanted = snr.detach().to("cpu", torch.float64).log()
        return _interpolate(ratios.log().flip(0), self.timesteps.double().flip(0), wanted)

    def start_step(self, sigma_B: Tensor) -> Tensor:
        """[B] long, the step whose SNR is nearest to 1/σ̂²: argmin_i |1/σ̂² - ᾱ_i/(1-ᾱ_i)|, also the image's NFE.

        Flash-Diffusion, sample-adaptive inference. `sigma_B` are predicted standard deviations of the latent error,
        ≥ 0; 0 starts at step 0, +inf at the last.
        """
        target_B = 1 / sigma_B.detach().to("cpu", torch.float64).square().clamp(min=1e-30)
        # the argmin without a [B, N] matrix: a sorted search in the ascending SNRs, then the nearer of both neighbours
        snr = self.snr()
        above_B = len(snr) - 1 - torch.searchsorted(snr.flip(0), target_B).clamp(max=len(snr) - 1)
        below_B = (above_B + 1).clamp(max=len(snr) - 1)
        nearer_below_B = (target_B - snr[below_B]).abs() < (target_B - snr[above_B]).abs()
        return torch.where(nearer_below_B, below_B, above_B)


@dataclass(frozen=True)
class FlowSchedule(NoiseSchedule):
    """The schedule of flow matching, x_t = (1-t) z₀ + t ε, as a variance-preserving one.

    z = x_t/√((1-t)² + t²) has ᾱ = (1-t)²/((1-t)² + t²) and SNR ((1-t)/t)². The denoiser's time is t times
    `train_steps`, a float. A full chain begins at t = 1, where ᾱ is 0.
    """

    # moves the times towards noise: t = shift u/(1 + (shift-1) u) of evenly spaced u (Esser et al. 2024, section 5.3.2)
    shift: float = 1.0
    train_steps: int = 1000  # N of the whole chain

    @classmethod
    def from_times(cls, time: Tensor, shift: float, train_steps: int, last: float = 1.0) -> FlowSchedule:
        """The schedule of steps at times t, [N] float64 ascending in (0, 1]; `last` is ᾱ after the last update."""
        alphas = (1 - time).square() / ((1 - time).square() + time.square())
        previous = torch.cat([torch.full((1,), last, dtype=torch.float64), alphas[:-1]])
        return cls((time * train_steps).float(), alphas, previous, shift, train_steps)

    @classmethod
    def from_scheduler_config(cls, config: dict[str, Any]) -> FlowSchedule:
        """The whole chain of diffusers' FlowMatchEulerDiscreteScheduler, or of a scheduler with `use_flow_sigmas`.

        ConfigError if the shift depends on the image's size or the times are turned round.
        """
        for key in ("use_dynamic_shifting", "invert_sigmas", "shift_terminal"):
            if config.get(key):
                raise ConfigError(f"scheduler: {key} is not supported; a flow's times must be the same for all images")
        steps = _step_count(config)
        shift = finite_number(config, "flow_shift" if config.get("use_flow_sigmas") else "shift", 1.0)
        if not shift > 0:
            raise ConfigError(f"scheduler: shift is {shift:g}; give a number above 0")
        time = torch.arange(1, steps + 1, dtype=torch.float64) / steps
        return cls.from_times(_shifted(time, shift), shift, steps)

    def respaced(self, steps: int, set_alpha_to_one: bool = True, spacing: Spacing = "leading") -> FlowSchedule:
        """Keep `steps` times, evenly spaced before the shift as in diffusers' Euler sampler.

        Args:
            steps: 1 … N; N returns the schedule itself.
            set_alpha_to_one: whether the last update leads to the data or to the whole chain's first ᾱ.
            spacing: changes nothing; these times begin at pure noise and end at the least noise.
        """
        total = self.train_steps
        if not 1 <= steps <= total:
            raise ConfigError(f"solver.steps is {steps}; the prior's schedule has {total} steps, so give 1 … {total}")
        if steps == len(self):
            return self
        # the sampler shifts once more what lies between the shifted ends
        first = float(_shifted(torch.tensor(1 / total, dtype=torch.float64), self.shift))
        time = torch.linspace(1.0, first, steps, dtype=torch.float64).flip(0)
        last = 1.0 if set_alpha_to_one else float(self.alphas_cumprod[0])
        return self.from_times(_shifted(time, self.shift), self.shift, total, last)

    def snr(self, timestep: Tensor | None = None) -> Tensor:
        """SNR ((1-t)/t)² in float64, at the denoiser's times, or at all steps where none are given."""
        if timestep is None:
            return self.alphas_cumprod / (1 - self.alphas_cumprod)
        time = timestep.detach().to("cpu", torch.float64) / self.train_steps
        return ((1 - time) / time).square()

    def snr_inverse(self, snr: Tensor) -> Tensor:
        """The denoiser's time at which the SNR has a value ≥ 0: t = 1/(1 + √SNR), times `train_steps`."""
        return self.train_steps / (1 + snr.detach().to("cpu", torch.float64).sqrt())


def is_flow(config: dict[str, Any]) -> bool:
    """Whether a scheduler config is of flow matching."""
    return bool(config.get("use_flow_sigmas")) or "FlowMatch" in str(config.get("_class_name"))


def _shifted(time: Tensor, shift: float) -> Tensor:
    return shift * time / (1 + (shift - 1) * time)


def _interpolate(x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """The piecewise linear function through (x, y), x ascending, that stays at its first and last values outside."""
    if len(x) == 1:
        return torch.where(at.isnan(), at, y[0])
    right = torch.searchsorted(x, at.contiguous()).clamp(1, len(x) - 1)
    left = right - 1
    share = ((at - x[left]) / (x[right] - x[left])).clamp(0, 1)
    return y[left] + share * (y[right] - y[left])


def finite_number(config: dict[str, Any], key: str, default: float, where: object = "scheduler") -> float:
    """A number of a config, or `default` where the key is missing or null; ConfigError unless it is finite."""
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ConfigError(f"{where}: {key} is {value!r}; give a finite number")
    return float(value)


def _step_count(config: dict[str, Any]) -> int:
    value = config.get("num_train_timesteps", 1000)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_STEPS:
        raise ConfigError(f"scheduler: num_train_timesteps is {value!r}; give an integer in 1 … {MOST_STEPS}")
    return value


def _given_betas(values: Any) -> Tensor:
    numbers = isinstance(values, list | tuple) and all(isinstance(value, int | float) for value in values)
    if not numbers or not 1 <= len(values) <= MOST_STEPS:
        raise ConfigError(f"scheduler: trained_betas must be a list of 1 … {MOST_STEPS} numbers")
    return torch.tensor(values, dtype=torch.float64)


def predict_z0(z_BCHW: Tensor, epsilon_BCHW: Tensor, alpha_B: Tensor) -> Tensor:
    """ẑ0 = (z - √(1-ᾱ) ε)/√ᾱ."""
    alpha = alpha_B[:, None, None, None]
    return (z_BCHW - (1 - alpha).sqrt() * epsilon_BCHW) / alpha.sqrt()
