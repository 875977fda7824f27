"""One cell of an experiment: a recipe on simulated measurements of clean photos, scored image by image. Core only."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flashray.degradations import Degradation
from flashray.degradations.simulate import draw_parameters, simulate
from flashray.engine import Job, solve
from flashray.metrics import LPIPS, score
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import image_seed
from flashray.severity import SeverityEncoder, Start, error_std
from flashray.solvers import Solver


@dataclass(frozen=True)
class Measurements:
    """Degraded photos and what is known of them. All on one device.

    Attributes:
        x_NCHW, y_NCHW: clean photos and their measurements in [-1, 1].
        z_hat_NCHW, sigma_hat_N: the severity encoder's estimates.
        sigma_true_N: σ̄, the true standard deviation of the latent error.
        seeds: the images' seeds.
    """

    keys: list[str]
    seeds: list[int]
    x_NCHW: Tensor
    y_NCHW: Tensor
    parameters: dict[str, Tensor]
    noise_std: float
    degradation: Degradation
    z_hat_NCHW: Tensor
    sigma_hat_N: Tensor
    sigma_true_N: Tensor


@torch.no_grad()
def measure_photos(
    x_NCHW: Tensor,
    keys: list[str],
    prior: LatentPrior,
    encoder: SeverityEncoder,
    degradation: Degradation,
    noise_std: float,
    seed: int = 0,
) -> Measurements:
    """Degrade photos as the job's `simulated` mode does, and look at them with the severity encoder."""
    device = prior.device
    seeds = [image_seed(seed, key) for key in keys]
    rows = [draw_parameters(degradation, one) for one in seeds]
    parameters = {name: torch.cat([row[name] for row in rows]).to(device) for name in rows[0]}
    x = x_NCHW.to(device)
    noise_std_N = torch.full((len(x),), noise_std, device=device)
    y = simulate(x, degradation, parameters, noise_std_N, torch.tensor(seeds, device=device))
    z_hat, sigma_hat = encoder(y)
    sigma_true = error_std(z_hat, prior.encode(x))
    return Measurements(keys, seeds, x, y, parameters, noise_std, degradation, z_hat, sigma_hat, sigma_true)


@torch.no_grad()
def run_cell(
    measured: Measurements,
    prior: LatentPrior,
    start: Start,
    solver: Solver,
    schedule: NoiseSchedule,
    slots: int,
    eta: float = 1.0,
) -> tuple[Tensor, dict[str, Any]]:
    """Solve all photos: (reconstructions [N, 3, H, W] on the CPU, {nfe [N], seconds, fallbacks, failed})."""
    device = prior.device
    seed_N = torch.tensor(measured.seeds, device=device)
    step_N, fallback_N = start.start_step(measured.sigma_hat_N, schedule)
    z_start = start.latent(measured.z_hat_NCHW, measured.sigma_hat_N, step_N, schedule, seed_N)
    order = step_N.argsort(descending=True).tolist()
    jobs = [
        Job(
            key=measured.keys[n],
            seed=measured.seeds[n],
            y=measured.y_NCHW[n],
            parameters={name: value[n] for name, value in measured.parameters.items()},
            noise_std=measured.noise_std,
            z_start=z_start[n],
            start_step=int(step_N[n]),
        )
        for n in order
    ]
    started = time.perf_counter()
    solved = {one.key: one for one in solve(prior, measured.degradation, solver, schedule, jobs, slots, eta)}
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    blank = torch.zeros_like(measured.x_NCHW[0]).cpu()  # a failed image scores as a grey one
    images = [solved[key].image for key in measured.keys]
    x_hat = torch.stack([blank if image is None else image for image in images])
    failed = sum(image is None for image in images)
    return x_hat, {"nfe": step_N, "seconds": seconds, "fallbacks": int(fallback_N.sum()), "failed": failed}


@torch.no_grad()
def score_in_batches(x_hat: Tensor, x: Tensor, lpips: LPIPS | None, device: torch.device) -> dict[str, Tensor]:
    """Per-image metrics [N] on the CPU."""
    rows = [score(a.to(device), b.to(device), lpips) for a, b in zip(x_hat.split(16), x.split(16), strict=True)]
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}
