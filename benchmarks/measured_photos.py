"""Simulated measurements of clean photos, restored and scored image by image, without Ray. Core only."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashray.degradations import Degradation, Parameters
from flashray.degradations.simulate import draw_parameters, simulate
from flashray.engine import Job, solve
from flashray.metrics import LPIPS, score
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import generator_of, image_seed
from flashray.severity import SeverityEncoder, Start, error_std, estimate
from flashray.solvers import Solver

BATCH = 16  # photos that a network sees at once, outside the solver


@dataclass(frozen=True)
class Measurements:
    """Degraded photos and what is known of them; N images, all on the prior's device.

    Attributes:
        seeds: the images' seeds.
        x_NCHW, y_NCHW: clean photos and their measurements in [-1, 1]; y may be of another size.
        shown_NCHW: the measurements at the photos' size.
        parameters: the degradation's parameters, as a solver believes them to be.
        noise_std_N: on the [0, 1] scale.
        z_hat_NCHW, sigma_hat_N: the severity encoder's estimates; None where none looked.
        sigma_true_N: σ̄, the true standard deviation of the latent error.
    """

    keys: list[str]
    seeds: list[int]
    x_NCHW: Tensor
    y_NCHW: Tensor
    shown_NCHW: Tensor
    parameters: Parameters
    noise_std_N: Tensor
    degradation: Degradation
    z_hat_NCHW: Tensor | None = None
    sigma_hat_N: Tensor | None = None
    sigma_true_N: Tensor | None = None

    @property
    def seed_N(self) -> Tensor:
        return torch.tensor(self.seeds, device=self.x_NCHW.device)

    def first(self, count: int) -> Measurements:
        """Those of the first so many photos."""
        cut: dict[str, Any] = {
            name: value[:count] for name, value in vars(self).items() if isinstance(value, Tensor | list)
        }
        cut["parameters"] = {name: value[:count] for name, value in self.parameters.items()}
        return dataclasses.replace(self, **cut)


@dataclass(frozen=True)
class Restored:
    """Restorations [N, 3, H, W] in [-1, 1] on the CPU and what each cost.

    Attributes:
        nfe: denoiser evaluations, also the start step.
        fallback: whether σ̂ was beyond what the start can express.
        seconds: each image's share of the time.
        error: why an image could not be restored; it then scores as a grey one.
    """

    x_NCHW: Tensor
    nfe: list[int]
    fallback: list[bool]
    seconds: list[float]
    error: list[str | None]

    @classmethod
    def in_one_pass(cls, x_NCHW: Tensor, seconds: float) -> Restored:
        """What something without a denoiser made in so many seconds."""
        n = len(x_NCHW)
        return cls(x_NCHW.clamp(-1, 1).cpu(), [0] * n, [False] * n, [seconds / n] * n, [None] * n)


@torch.no_grad()
def measure_photos(
    x_NCHW: Tensor,
    keys: list[str],
    prior: LatentPrior,
    encoder: SeverityEncoder | None,
    degradation: Degradation,
    noise_std: float | tuple[float, float] = 0.05,
    seed: int = 0,
    severity: float | None = None,
) -> Measurements:
    """Degrade photos as the job's `simulated` mode does, and look at them with the severity encoder.

    Args:
        noise_std: on the [0, 1] scale; (low, high) draws it per image.
        severity: every image at this severity of the family's range, 0 … 1, instead of one drawn from its seed.
    """
    device, size = prior.device, (x_NCHW.shape[2], x_NCHW.shape[3])
    x = x_NCHW.to(device)
    seeds = [image_seed(seed, key) for key in keys]
    drawn = [_parameters(degradation, one, severity) for one in seeds]
    parameters = {name: torch.cat([one[name] for one in drawn]).to(device) for name in drawn[0]}
    noise_std_N = torch.tensor([_noise_std(noise_std, one) for one in seeds], device=device)
    y, shown, z_hat, sigma_hat, sigma_true = [], [], [], [], []
    for rows in batches(len(x), device):
        here = {name: value[rows] for name, value in parameters.items()}
        y.append(simulate(x[rows], degradation, here, noise_std_N[rows], torch.tensor(seeds, device=device)[rows]))
        operator = degradation.bind(here, size)
        shown.append(operator.picture(y[-1]))
        if encoder is not None:
            z, sigma = estimate(encoder, prior, operator.pseudo_image(y[-1]))
            z_hat.append(z)
            sigma_hat.append(sigma)
            sigma_true.append(error_std(z, prior.encode(x[rows])))
    seen = [torch.cat(parts) if parts else None for parts in (z_hat, sigma_hat, sigma_true)]
    return Measurements(
        list(keys), seeds, x, torch.cat(y), torch.cat(shown), parameters, noise_std_N, degradation, *seen
    )


def believing(measured: Measurements, times: Mapping[str, float]) -> Measurements:
    """The same measurements for a solver that takes these parameters of the operator to be so many times the truth.

    Raises:
        ConfigError: if the operator is not defined there.
    """
    wrong = {name: value * times.get(name, 1.0) for name, value in measured.parameters.items()}
    measured.degradation.check_parameters(wrong)
    return dataclasses.replace(measured, parameters=wrong)


@torch.no_grad()
def jobs_of(
    measured: Measurements, prior: LatentPrior, start: Start, schedule: NoiseSchedule
) -> tuple[list[Job], list[bool]]:
    """(the engine's jobs, hardest first; whether each photo falls back). A full chain needs no severity encoder."""
    z_hat, sigma_hat = measured.z_hat_NCHW, measured.sigma_hat_N
    if z_hat is None or sigma_hat is None:
        assert start.mode == "full", "only a full chain can do without a severity encoder"
        shape = prior.encode(measured.x_NCHW[:1]).shape[1:]
        z_hat = measured.x_NCHW.new_zeros(len(measured.keys), *shape)
        sigma_hat = measured.x_NCHW.new_full((len(z_hat),), math.nan)
    step_N, fallback_N = start.start_step(sigma_hat, schedule)
    z_start = start.latent(z_hat, sigma_hat, step_N, schedule, measured.seed_N)
    jobs = [
        Job(
            key=measured.keys[n],
            seed=measured.seeds[n],
            y=measured.y_NCHW[n],
            parameters={name: value[n] for name, value in measured.parameters.items()},
            noise_std=float(measured.noise_std_N[n]),
            z_start=z_start[n],
            start_step=int(step_N[n]),
        )
        for n in step_N.argsort(descending=True).tolist()
    ]
    return jobs, fallback_N.tolist()


@torch.no_grad()
def run_cell(
    measured: Measurements,
    prior: LatentPrior,
    start: Start,
    solver: Solver,
    schedule: NoiseSchedule,
    slots: int,
    eta: float = 1.0,
) -> Restored:
    """Solve all photos."""
    jobs, fallback = jobs_of(measured, prior, start, schedule)
    found = {one.key: one for one in solve(prior, measured.degradation, solver, schedule, jobs, slots, eta)}
    solved = [found[key] for key in measured.keys]
    grey = torch.zeros_like(measured.x_NCHW[0]).cpu()
    return Restored(
        x_NCHW=torch.stack([grey if one.image is None else one.image for one in solved]),
        nfe=[one.nfe for one in solved],
        fallback=fallback,
        seconds=[one.seconds for one in solved],
        error=[one.error for one in solved],
    )


@torch.no_grad()
def score_in_batches(x_hat: Tensor, x: Tensor, lpips: LPIPS | None, device: torch.device) -> dict[str, Tensor]:
    """Per-image metrics [N] on the CPU."""
    rows = [score(a.to(device), b.to(device), lpips) for a, b in zip(x_hat.split(BATCH), x.split(BATCH), strict=True)]
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}


@torch.no_grad()
def decode_in_batches(prior: LatentPrior, z_NCHW: Tensor) -> Tensor:
    """D(z) of any number of latents."""
    return torch.cat([prior.decode(z) for z in z_NCHW.split(BATCH)])


def stopwatch(device: torch.device) -> float:
    """Seconds, once the device has done what it was asked."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def batches(count: int, device: torch.device) -> Iterator[Tensor]:
    """Row numbers, BATCH at a time."""
    yield from torch.arange(count, device=device).split(BATCH)


def _parameters(degradation: Degradation, seed: int, severity: float | None) -> Parameters:
    if severity is None:
        return draw_parameters(degradation, seed)
    return degradation.parameters_at(torch.tensor([severity]), generator_of(seed, "degradation"))


def _noise_std(noise_std: float | tuple[float, float], seed: int) -> float:
    """As the job draws it (`pipeline.measurement`)."""
    low, high = noise_std if isinstance(noise_std, tuple) else (noise_std, noise_std)
    if low == high:
        return low
    return low + (high - low) * torch.rand((), generator=generator_of(seed, "noise_std")).item()
