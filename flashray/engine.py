"""Batched reverse diffusion: every slot holds one image at its own step."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Parameters
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import normal
from flashray.solvers.base import Problem, Solver, Step

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """One image to solve. Tensors have no batch dimension.

    Attributes:
        key: the image's name in its archive.
        seed: `image_seed(run seed, key)`; all of the image's noise follows from it.
        y: [3, h, w] measurement in [-1, 1].
        parameters: the degradation's parameters of this image.
        noise_std: on the [0, 1] scale.
        z_start: [C, h, w] start latent.
        start_step: 0 … N; the number of updates, and so the image's NFE.
    """

    key: str
    seed: int
    y: Tensor
    parameters: Parameters
    noise_std: float
    z_start: Tensor
    start_step: int


@dataclass(frozen=True)
class Solved:
    """A finished image: [3, H, W] in [-1, 1], or None with an `error`.

    `seconds` is the image's share of the time of the batched steps that updated it.
    """

    key: str
    image: Tensor | None
    nfe: int
    seconds: float
    error: str | None = None


@dataclass
class ActiveImage:
    """An image in a slot: its latent z_i, the index of its next update, and its seconds so far."""

    job: Job
    z: Tensor
    step: int
    seconds: float = 0.0


@dataclass
class SlotUtilization:
    """Counts the share of slots that updated an image; pass it to `solve` as `on_step`."""

    slots: int
    useful: int = 0
    steps: int = 0

    def __call__(self, count: int) -> None:
        self.useful, self.steps = self.useful + count, self.steps + 1

    @property
    def share(self) -> float:
        """Slot-steps that updated an image over all slot-steps."""
        return self.useful / (self.slots * self.steps) if self.steps else 1.0


def solve(
    prior: LatentPrior,
    degradation: Degradation,
    solver: Solver,
    schedule: NoiseSchedule,
    jobs: Iterable[Job],
    slots: int = 8,
    eta: float = 1.0,
    on_step: Callable[[int], None] | None = None,
) -> Iterator[Solved]:
    """Solve the images, `slots` at a time; yields each as it finishes.

    A finished image's slot is refilled at once from `jobs` (give them in descending start step, so that few slots are
    idle at the end). An image takes exactly `start_step` updates, with noise from its own (seed, step) and per-image
    norms, so its result depends on the other images of the batch by rounding only. If a step runs out of memory, the
    number of slots is halved and the step is repeated; images without a slot keep their latents and wait.

    Args:
        schedule: the respaced schedule that start steps refer to.
        eta: DDIM's η of the reverse steps; 1 is ancestral sampling.
        on_step: called after every batched step with the number of images that it advanced.
    """
    queue = deque(jobs)
    waiting: deque[ActiveImage] = deque()  # begun, and without a slot because memory ran out
    active: list[ActiveImage] = []
    changed = True
    while queue or waiting or active:
        final: list[ActiveImage] = []  # no updates to make: the start latent is decoded
        while (queue or waiting) and len(active) + len(final) < slots:
            changed = True
            if waiting:
                active.append(waiting.popleft())
                continue
            job = queue.popleft()
            one = ActiveImage(job, job.z_start.to(prior.device), job.start_step - 1)
            (active if job.start_step else final).append(one)
        if final:
            yield from _finish(prior, final)
            continue
        started = time.perf_counter()
        try:
            if changed:
                seed_B, problem = make_problem(prior, degradation, [one.job for one in active])
                changed = False
            step_B = torch.tensor([one.step for one in active])
            z_BCHW = torch.stack([one.z for one in active])
            z_BCHW = advance(prior, solver, schedule, problem, z_BCHW, step_B, seed_B, eta)
        except torch.OutOfMemoryError:
            if len(active) == 1:
                raise
            slots = len(active) // 2
            log.warning("out of memory with %d images in flight; going on with %d", len(active), slots)
            active, held = active[:slots], active[slots:]
            waiting.extendleft(reversed(held))
            changed = True
            continue
        share = (time.perf_counter() - started) / len(active)
        for one, z in zip(active, z_BCHW, strict=True):
            one.z, one.step, one.seconds = z, one.step - 1, one.seconds + share
        if on_step is not None:
            on_step(len(active))
        finished = [one for one in active if one.step < 0]
        if finished:
            active = [one for one in active if one.step >= 0]
            changed = True
            yield from _finish(prior, finished)


def advance(
    prior: LatentPrior,
    solver: Solver,
    schedule: NoiseSchedule,
    problem: Problem | None,
    z_BCHW: Tensor,
    step_B: Tensor,
    seed_B: Tensor,
    eta: float = 1.0,
) -> Tensor:
    """One solver update of a batch in which image b is at step `step_B[b]`; the result has no graph."""
    device = z_BCHW.device
    step_B = step_B.cpu()
    with torch.set_grad_enabled(solver.needs_gradient):
        z = z_BCHW.detach().requires_grad_(solver.needs_gradient)
        timestep_B = schedule.timesteps[step_B].to(device)
        alpha_B = schedule.alphas_cumprod[step_B].to(device, z.dtype)
        z0, epsilon = prior.predict(z, timestep_B, alpha_B)
        step = Step(
            z_BCHW=z,
            z0_BCHW=z0,
            epsilon_BCHW=epsilon,
            alpha_B=alpha_B,
            alpha_prev_B=schedule.alphas_cumprod_prev[step_B].to(device, z.dtype),
            timestep_B=timestep_B,
            index_B=step_B.to(device),
            noise=lambda stream: normal(seed_B, step_B, tuple(z.shape[1:]), stream).to(z),
            eta=eta,
        )
        return solver(step, problem).detach()  # type: ignore[arg-type]  # None: a rule that uses no measurement


def make_problem(prior: LatentPrior, degradation: Degradation, jobs: list[Job]) -> tuple[Tensor, Problem]:
    """([B] seeds, the batch's problem) of the images in flight."""
    device = prior.device
    y = torch.stack([job.y for job in jobs]).to(device)
    parameters = {name: torch.stack([job.parameters[name] for job in jobs]).to(device) for name in jobs[0].parameters}
    problem = Problem(
        y_BCHW=y,
        operator=degradation.bind(parameters, degradation.image_size((y.shape[2], y.shape[3]))),
        noise_std_B=torch.tensor([job.noise_std for job in jobs], device=device),
        encode=prior.encode,
        decode=prior.decode,
    )
    return torch.tensor([job.seed for job in jobs], device=device), problem


@torch.no_grad()
def _finish(prior: LatentPrior, active: list[ActiveImage]) -> Iterator[Solved]:
    """Decode finished latents; a result that is not finite becomes an error."""
    started = time.perf_counter()
    z_BCHW = torch.stack([one.z for one in active])
    x_BCHW = prior.decode(z_BCHW)
    # checked before the clamp, which turns an infinity into white
    finite_B = torch.isfinite(z_BCHW).flatten(1).all(dim=1) & torch.isfinite(x_BCHW).flatten(1).all(dim=1)
    images = x_BCHW.clamp(-1, 1).cpu()
    share = (time.perf_counter() - started) / len(active)
    for one, image, finite in zip(active, images, finite_B.tolist(), strict=True):
        job, seconds = one.job, one.seconds + share
        if finite:
            yield Solved(job.key, image, job.start_step, seconds)
        else:
            error = "the solver diverged: the reconstruction is not finite; lower the recipe's step size"
            yield Solved(job.key, None, job.start_step, seconds, error)
