"""The method's plain loop, one image at a time: what every speed of the engine is compared with."""

from __future__ import annotations

import torch
from torch import Tensor

from flashray.active_image import Job
from flashray.degradations import Degradation
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_SOLVER, normal


def latent_dps_loop(
    prior: LatentPrior, degradation: Degradation, schedule: NoiseSchedule, job: Job, dc_step: float
) -> Tensor:
    """Latent-DPS on one image as the paper's Algorithm 1 reads, with ancestral steps: [3, H, W] in [-1, 1].

    The noise is the engine's, so that both give the same image and only the seconds differ.
    """
    device = prior.device
    y, z = job.y[None].to(device), job.z_start[None].to(device)
    parameters = {name: value[None].to(device) for name, value in job.parameters.items()}
    operator = degradation.bind(parameters, (y.shape[2], y.shape[3]))
    seed = torch.tensor([job.seed])
    for i in reversed(range(job.start_step)):
        alpha, alpha_prev = schedule.alphas_cumprod[i].item(), schedule.alphas_cumprod_prev[i].item()
        z = z.detach().requires_grad_(True)
        epsilon = prior.epsilon(z, schedule.timesteps[i : i + 1].to(device))
        z0 = (z - (1 - alpha) ** 0.5 * epsilon) / alpha**0.5
        error = torch.linalg.vector_norm(y - operator.A(prior.decode(z0)))
        (gradient,) = torch.autograd.grad(error, z)
        with torch.no_grad():
            beta = 1 - alpha / alpha_prev
            mean = (alpha_prev**0.5 * beta * z0 + (alpha / alpha_prev) ** 0.5 * (1 - alpha_prev) * z) / (1 - alpha)
            variance = beta * (1 - alpha_prev) / (1 - alpha)
            noise = normal(seed, torch.tensor([i]), tuple(z.shape[1:]), STREAM_SOLVER).to(z)
            z = mean + variance**0.5 * noise - dc_step * gradient
    with torch.no_grad():
        return prior.decode(z)[0].clamp(-1, 1)
