"""The reverse diffusion of this project and of diffusers, from the same latents, without noise (η = 0)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from torch import Tensor

from flashray.active_image import Job, Solved
from flashray.degradations import make_degradation
from flashray.engine import advance, solve
from flashray.prior import LatentPrior
from flashray.prior.weights import read_json
from flashray.schedule import NoiseSchedule, is_flow
from flashray.severity import SeverityEncoder
from flashray.severity.encoder import estimate
from flashray.severity.loss import map_loss
from flashray.severity.start import Start
from flashray.solvers import make_solver
from flashray.solvers.unguided import Unguided

BLUR = make_degradation("gaussian_blur")
Answer = Callable[[Tensor, Tensor], Tensor]  # (latents, [B] times) ↦ what diffusers' model predicts
STEPS = 20


def start(prior: LatentPrior, count: int = 2) -> Tensor:
    """Pure noise."""
    with torch.no_grad():
        shape = prior.encode(torch.zeros(1, 3, prior.sample_size, prior.sample_size).to(prior.scale)).shape[1:]
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(3))


def our_step(prior: LatentPrior, schedule: NoiseSchedule, z: Tensor, i: int) -> Tensor:
    batch = torch.full((len(z),), i)
    return advance(prior, Unguided(), schedule, None, z, batch, torch.arange(len(z)), eta=0.0)


def our_chain(prior: LatentPrior, schedule: NoiseSchedule, z: Tensor) -> list[Tensor]:
    """The latents after every update."""
    found = []
    for i in reversed(range(len(schedule))):
        z = our_step(prior, schedule, z, i)
        found.append(z)
    return found


@torch.no_grad()
def their_chain(answer: Answer, scheduler: Any, z: Tensor) -> list[Tensor]:
    """The same with diffusers' sampler around diffusers' model."""
    scheduler.set_timesteps(STEPS)
    options = {"eta": 0.0} if isinstance(scheduler, DDIMScheduler) else {}
    found = []
    for time in scheduler.timesteps:
        z = scheduler.step(answer(z, time.expand(len(z))), time, z, **options).prev_sample
        found.append(z)
    return found


def sampler_of(folder: Path) -> Any:
    """The pipeline's own noise in the samplers that our chain is to equal."""
    config = read_json(folder / "scheduler" / "scheduler_config.json")
    if is_flow(config):
        shift = config["flow_shift"] if "flow_shift" in config else config["shift"]
        return FlowMatchEulerDiscreteScheduler(shift=shift)
    return DDIMScheduler.from_pretrained(folder / "scheduler")


def our_schedule(prior: LatentPrior, sampler: Any) -> NoiseSchedule:
    return prior.schedule.respaced(STEPS, set_alpha_to_one=sampler.config.get("set_alpha_to_one", True))


def as_flow(sampler: FlowMatchEulerDiscreteScheduler, latents: list[Tensor]) -> list[Tensor]:
    """Our latents of unit variance, after every update, as those of flow matching: x_t = z √((1-t)² + t²)."""
    return [z * ((1 - t) ** 2 + t**2) ** 0.5 for z, t in zip(latents, sampler.sigmas[1:].tolist(), strict=True)]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> tuple[float, float]:
    """Of the first step and of the whole chain: the largest difference, over the largest value there."""
    pairs = [((a - b).abs().max() / b.abs().max()).item() for a, b in zip(ours, theirs, strict=True)]
    return pairs[0], max(pairs)


def compare(folder: Path, prior: LatentPrior, answer: Answer) -> tuple[float, float]:
    """Our chain of 20 steps against diffusers', around the model that it loads itself."""
    sampler, z = sampler_of(folder), start(prior)
    theirs = their_chain(answer, sampler, z)
    ours = our_chain(prior, our_schedule(prior, sampler), z)
    return difference(as_flow(sampler, ours) if hasattr(sampler, "sigmas") else ours, theirs)


def trained_encoder(prior: LatentPrior, steps: int = 12) -> tuple[SeverityEncoder, list[float]]:
    """A severity encoder after a few steps on blurred toys, and -ln of its error's likelihood at each."""
    torch.manual_seed(0)
    encoder = SeverityEncoder.from_prior(prior, "gaussian_blur", {}, 0.05, widths=(16, 24), blocks=(1, 1)).train()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=1e-3)
    clean, side = toys(prior, 8), prior.sample_size
    parameters = BLUR.parameters_at(torch.linspace(0.05, 0.95, len(clean)))
    y = BLUR.bind(parameters, (side, side)).A(clean)
    with torch.no_grad():
        z0, e = prior.encode(clean), prior.encode(y)
    losses = []
    for _ in range(steps):
        severity = encoder(y, e)
        terms = map_loss(severity.z_hat_BCHW, z0, severity.log_variance_Bhw)
        optimizer.zero_grad()
        terms["loss"].backward()
        optimizer.step()
        losses.append(terms["sigma"].item())
    return encoder.eval(), losses


def toys(prior: LatentPrior, count: int) -> Tensor:
    """Smooth pictures of the prior's size, [count, 3, H, W] in [-1, 1]."""
    coarse = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(4)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, prior.sample_size, mode="bicubic").clamp(-1, 1)


def restored(
    prior: LatentPrior,
    encoder: SeverityEncoder,
    solver: str = "latent_dps",
    mode: Literal["flash", "full"] = "flash",
    **settings: Any,
) -> Solved:
    """A blurred toy through severity, flash start and solver."""
    side = prior.sample_size
    parameters = BLUR.parameters_at(torch.tensor([0.4]))
    y = BLUR.bind(parameters, (side, side)).A(toys(prior, 1))
    severity = estimate(encoder, prior, y)
    z_hat, sigma_hat = severity.z_hat_BCHW, severity.sigma_Bhw.square().mean(dim=(1, 2)).sqrt()
    schedule = prior.schedule.respaced(STEPS)
    rule = Start(mode, sigma_scale=0.5 / sigma_hat.item())  # whatever a random autoencoder's latents are
    step, _ = rule.start_step(sigma_hat, schedule)
    z = rule.latent(z_hat, sigma_hat, step, schedule, torch.tensor([5]))
    alone = {name: value[0] for name, value in parameters.items()}
    job = Job("a", 5, y[0], alone, 0.05, z[0], int(step[0]))
    (solved,) = solve(prior, BLUR, make_solver(solver, settings), schedule, [job])
    return solved
