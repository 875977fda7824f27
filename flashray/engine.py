"""In-flight batched reverse diffusion: every slot holds one image at its own step."""

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

    `seconds` is the image's share of the time of the steps it took part in.
    """

    key: str
    image: Tensor | None
    nfe: int
    seconds: float
    error: str | None = None


@dataclass
class Flight:
    """An image in a slot: its latent z_i, the index of its next update, and its seconds so far."""

    job: Job
    z: Tensor
    step: int
    seconds: float = 0.0


@dataclass
class Occupancy:
    """The share of slots that did useful work; give it to `solve` as `on_step`."""

    slots: int
    useful: int = 0
    steps: int = 0

    def __call__(self, count: int) -> None:
        self.useful, self.steps = self.useful + count, self.steps + 1

    @property
    def share(self) -> float:
        """Useful slot-steps over all slot-steps."""
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

    A finished image's slot is refilled at once from `jobs` (give them in descending start step, so that a batch drains
    evenly). An image takes exactly `start_step` updates, with noise from its own (seed, step) and per-image norms, so
    its result does not depend on its neighbours beyond the arithmetic's rounding. A step that runs out of memory halves
    the slots and is taken again; the images that lost theirs wait with the latents that they have reached.

    Args:
        schedule: the respaced schedule that start steps refer to.
        eta: DDIM's η of the reverse steps; 1 is ancestral sampling.
        on_step: called after every batched step with the number of images that it advanced.
    """
    queue = deque(jobs)
    waiting: deque[Flight] = deque()  # begun, and without a slot since memory ran out
    flights: list[Flight] = []
    boarding = True
    while queue or waiting or flights:
        final: list[Flight] = []  # nothing to solve: the start latent is what is decoded
        while (queue or waiting) and len(flights) + len(final) < slots:
            boarding = True
            if waiting:
                flights.append(waiting.popleft())
                continue
            job = queue.popleft()
            flight = Flight(job, job.z_start.to(prior.device), job.start_step - 1)
            (flights if job.start_step else final).append(flight)
        if final:
            yield from _land(prior, final)
            continue
        started = time.perf_counter()
        try:
            if boarding:
                seed_B, problem = make_problem(prior, degradation, [flight.job for flight in flights])
                boarding = False
            step_B = torch.tensor([flight.step for flight in flights])
            z_BCHW = torch.stack([flight.z for flight in flights])
            z_BCHW = advance(prior, solver, schedule, problem, z_BCHW, step_B, seed_B, eta)
        except torch.OutOfMemoryError:
            if len(flights) == 1:
                raise
            slots = len(flights) // 2
            log.warning("out of memory with %d images in flight; going on with %d", len(flights), slots)
            flights, held = flights[:slots], flights[slots:]
            waiting.extendleft(reversed(held))
            boarding = True
            continue
        share = (time.perf_counter() - started) / len(flights)
        for flight, z in zip(flights, z_BCHW, strict=True):
            flight.z, flight.step, flight.seconds = z, flight.step - 1, flight.seconds + share
        if on_step is not None:
            on_step(len(flights))
        landed = [flight for flight in flights if flight.step < 0]
        if landed:
            flights = [flight for flight in flights if flight.step >= 0]
            boarding = True
            yield from _land(prior, landed)


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
    """One solver update of a batch in which image b is at step `step_B[b]`; no graph outlives it."""
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
        return solver(step, problem).detach()  # type: ignore[arg-type]  # no problem: a rule that looks at no data


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
def _land(prior: LatentPrior, flights: list[Flight]) -> Iterator[Solved]:
    """Decode finished latents; a result that is not finite is an error, not an image."""
    started = time.perf_counter()
    z_BCHW = torch.stack([flight.z for flight in flights])
    x_BCHW = prior.decode(z_BCHW)
    # before the clamp, which makes an infinity look like white
    finite_B = torch.isfinite(z_BCHW).flatten(1).all(dim=1) & torch.isfinite(x_BCHW).flatten(1).all(dim=1)
    images = x_BCHW.clamp(-1, 1).cpu()
    share = (time.perf_counter() - started) / len(flights)
    for flight, image, finite in zip(flights, images, finite_B.tolist(), strict=True):
        job, seconds = flight.job, flight.seconds + share
        if finite:
            yield Solved(job.key, image, job.start_step, seconds)
        else:
            error = "the solver diverged: the reconstruction is not finite; lower the recipe's step size"
            yield Solved(job.key, None, job.start_step, seconds, error)
