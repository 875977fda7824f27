"""In-flight batched reverse diffusion of photos of any size: every photo is at its own step.

A photo is one latent. At every step the windows of all photos in flight are gathered into denoiser batches, and the
solver is called once for the photos of one size (docs/architecture.md).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from flashray.active_image import (
    ActiveImage,
    Job,
    SizeGroup,
    Solved,
    activate,
    grid_of,
    group,
    photo_size,
)
from flashray.degradations.base import Degradation
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule, predict_z0
from flashray.seeding import normal
from flashray.severity.regions import hold
from flashray.solvers.solver import Problem, Solver, Step
from flashray.windows import LatentGrid, View, crop, vote, windowed_epsilon

log = logging.getLogger(__name__)

Epsilon = Callable[[Tensor, Tensor], Tensor]  # (z_BCHW, timestep_B) → ε_BCHW
DIVERGED = "the solver diverged: the reconstruction is not finite; lower the recipe's step size"


def solve(
    prior: LatentPrior,
    degradation: Degradation,
    solver: Solver,
    schedule: NoiseSchedule,
    jobs: Sequence[Job],
    slots: int = 8,
    eta: float = 1.0,
    on_step: Callable[[int], None] | None = None,
    grid: LatentGrid | None = None,
) -> Iterator[Solved]:
    """Solve photos of any sizes, up to `slots` windows at a time; yields each as it finishes.

    Photos are taken from `jobs` while their windows fit the slots (give them in descending start step, so that a batch
    drains evenly). One that has more windows than there are slots is solved alone, its windows in several denoiser
    batches. A photo takes exactly `start_step` updates, with noise from its own (seed, step, position) and norms of its
    own, so its result does not depend on its neighbours beyond the arithmetic's rounding. A step that runs out of
    memory halves the slots and is taken again; the photos that lost theirs wait with the latents that they have
    reached.

    ConfigError if a start latent or the starts of its windows are not those of its photo's size; torch.OutOfMemoryError
    where one photo with one window at a time is too large.

    Args:
        schedule: the respaced schedule that start steps refer to.
        slots: windows in a denoiser batch at most, ≥ 1.
        eta: DDIM's η of the reverse steps; 1 is ancestral sampling.
        on_step: called for every denoiser batch with the number of windows in it.
        grid: the latent factor and the windows' side; the prior's own by default.
    """
    grid = grid or grid_of(prior)
    queue = deque(jobs)
    waiting: deque[ActiveImage] = deque()  # begun, and without slots since memory ran out
    active: list[ActiveImage] = []
    groups: list[SizeGroup] = []
    changed = True
    while queue or waiting or active:
        final: list[ActiveImage] = []  # nothing to solve: the start latent is what is decoded
        while queue or waiting:
            size = waiting[0].size if waiting else photo_size(degradation, queue[0])
            taken = _windows(active) + _windows(final)
            if taken and taken + len(grid.windows(size)) > slots:
                break
            changed = True
            image = waiting.popleft() if waiting else activate(queue.popleft(), size, grid, prior.device)
            (active if image.job.start_step else final).append(image)
        if final:
            yield from _finish(prior, final)
            continue
        started = time.perf_counter()
        try:
            if changed:
                groups = group(prior, degradation, grid, active)
                changed = False
            batches = update(prior, solver, schedule, groups, slots, eta)
        except torch.OutOfMemoryError:
            slots = min(slots, _windows(active))
            if slots == 1:
                raise
            slots //= 2
            log.warning("out of memory with %d photos in flight; going on with %d windows", len(active), slots)
            active, left = _fitting(active, slots)
            waiting.extendleft(reversed(left))
            changed = True
            continue
        each = (time.perf_counter() - started) / _windows(active)
        for image in active:
            image.seconds += each * len(image.windows)
        if on_step is not None:
            for count in batches:
                on_step(count)
        finished = [image for image in active if image.step < 0]
        if finished:
            active = [image for image in active if image.step >= 0]
            changed = True
            yield from _finish(prior, finished)


def _windows(active: Sequence[ActiveImage]) -> int:
    return sum(len(image.windows) for image in active)


def _fitting(active: Sequence[ActiveImage], slots: int) -> tuple[list[ActiveImage], list[ActiveImage]]:
    """(active whose windows fit the slots, at least the first; the others)."""
    kept: list[ActiveImage] = [active[0]]
    waiting: list[ActiveImage] = []
    for image in active[1:]:
        (kept if _windows(kept) + len(image.windows) <= slots else waiting).append(image)
    return kept, waiting


def update(
    prior: LatentPrior,
    solver: Solver,
    schedule: NoiseSchedule,
    groups: Sequence[SizeGroup],
    slots: int,
    eta: float = 1.0,
) -> list[int]:
    """One update of every photo; returns the number of windows of each denoiser batch.

    Windows of photos of all sizes share batches, but where a solver wants gradients only those of photos of one size
    do: each solver call takes its own graph down. Nothing changes if a photo's update fails.
    """
    batches: list[int] = []
    active = [image for some in groups for image in some.active]
    estimates: Iterator[Tensor] = iter(())
    if not solver.needs_gradient:
        with torch.no_grad():
            found, batches = windowed_epsilon(
                denoise_of(prior), [view(prior, image, image.z, schedule) for image in active], slots
            )
        estimates = iter(found)
    results: list[Tensor] = []
    for some in groups:

        def epsilon(z_BCHW: Tensor, timestep_B: Tensor, some: SizeGroup = some) -> Tensor:
            if not solver.needs_gradient:
                return torch.stack([next(estimates) for _ in some.active])
            views = [view(prior, image, z, schedule) for image, z in zip(some.active, z_BCHW, strict=True)]
            found, counts = windowed_epsilon(denoise_of(prior), views, slots)
            batches.extend(counts)
            return torch.stack(found)

        z_BCHW = torch.stack([image.z for image in some.active])
        step_B = torch.tensor([image.step for image in some.active])
        results += advance(prior, solver, schedule, some.problem, z_BCHW, step_B, some.seed_B, eta, epsilon)
    for image, z in zip(active, results, strict=True):
        image.z, image.step = held(image, z, schedule), image.step - 1
    return batches


def denoise_of(prior: LatentPrior) -> Epsilon:
    """(z, t) ↦ ε; of a flow ε and ẑ0 one after the other in the channels.

    Where a flow begins, at ᾱ = 0, ε alone does not say what ẑ0 is.
    """
    if prior.prediction_type != "flow_prediction":
        return prior.epsilon

    def epsilon_and_z0(z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        z0, epsilon = prior.predict(z_BCHW, timestep_B, timestep_B)
        return torch.cat([epsilon, z0], dim=1)

    return epsilon_and_z0


def split(estimate_BCHW: Tensor, z_BCHW: Tensor, alpha_B: Tensor) -> tuple[Tensor, Tensor]:
    """(ε, ẑ0) of what `denoise_of` gives."""
    channels = z_BCHW.shape[1]
    if estimate_BCHW.shape[1] > channels:
        return estimate_BCHW[:, :channels], estimate_BCHW[:, channels:]
    return estimate_BCHW, predict_z0(z_BCHW, estimate_BCHW, alpha_B)


def view(prior: LatentPrior, image: ActiveImage, z_CHW: Tensor, schedule: NoiseSchedule) -> View:
    """The photo's latent as the denoiser is to see it in its next update."""
    timestep, active_K = schedule.timesteps[image.step].to(z_CHW.device), image.active()
    if active_K is None or image.z_hat is None or bool(active_K.all()):
        return View(z_CHW, timestep, image.windows)
    alpha = schedule.alphas_cumprod[image.step].to(z_CHW)
    voted = vote(z_CHW, image.z_hat, alpha)
    if prior.prediction_type == "flow_prediction":
        voted = torch.cat([voted, image.z_hat])
    return View(z_CHW, timestep, image.windows, active_K, voted)


def held(image: ActiveImage, z_next_CHW: Tensor, schedule: NoiseSchedule) -> Tensor:
    """z_next with the positions that wait at their own start noise; at the end those that never joined are ẑ."""
    if image.start_hw is None or image.z_hat is None or image.noise is None:
        return z_next_CHW
    alpha_prev = schedule.alphas_cumprod_prev[image.step] if image.step else torch.ones(())
    active_hw = image.start_hw > image.step
    return hold(z_next_CHW, active_hw, image.z_hat, image.noise, alpha_prev.to(z_next_CHW))


def advance(
    prior: LatentPrior,
    solver: Solver,
    schedule: NoiseSchedule,
    problem: Problem | None,
    z_BCHW: Tensor,
    step_B: Tensor,
    seed_B: Tensor,
    eta: float = 1.0,
    epsilon: Epsilon | None = None,
) -> Tensor:
    """One solver update of photos of one size, of which photo b is at step `step_B[b]`; no graph outlives it.

    `epsilon` gives ε̂ of whole latents; by default it is the prior's own, for latents of one window.
    """
    device = z_BCHW.device
    step_B = step_B.cpu()
    with torch.set_grad_enabled(solver.needs_gradient):
        z = z_BCHW.detach().requires_grad_(solver.needs_gradient)
        timestep_B = schedule.timesteps[step_B].to(device)
        alpha_B = schedule.alphas_cumprod[step_B].to(device, z.dtype)
        noise_estimate, z0 = split((epsilon or denoise_of(prior))(z, timestep_B), z, alpha_B)
        step = Step(
            z_BCHW=z,
            z0_BCHW=z0,
            epsilon_BCHW=noise_estimate,
            alpha_B=alpha_B,
            alpha_prev_B=schedule.alphas_cumprod_prev[step_B].to(device, z.dtype),
            timestep_B=timestep_B,
            index_B=step_B.to(device),
            noise=lambda stream: normal(seed_B, step_B, tuple(z.shape[1:]), stream).to(z),
            eta=eta,
        )
        return solver(step, problem).detach()  # type: ignore[arg-type]  # no problem: a rule that looks at no data


@torch.no_grad()
def _finish(prior: LatentPrior, active: Sequence[ActiveImage]) -> Iterator[Solved]:
    """Decode finished latents, those of one size together; a result that is not finite is an error, not an image.

    A photo of which nothing is restored is not decoded. Its image is grey, and fusion takes none of it.
    """
    by_size: dict[tuple[int, ...], list[ActiveImage]] = {}
    for image in active:
        if image.job.touched:
            by_size.setdefault(tuple(image.z.shape), []).append(image)
        else:
            yield _solved(image, torch.zeros(3, *image.size), 0.0)
    for some in by_size.values():
        started = time.perf_counter()
        z_BCHW = torch.stack([image.z for image in some])
        x_BCHW = prior.decode(z_BCHW)
        # before the clamp, which makes an infinity look like white
        finite_B = torch.isfinite(z_BCHW).flatten(1).all(dim=1) & torch.isfinite(x_BCHW).flatten(1).all(dim=1)
        images = x_BCHW.clamp(-1, 1).cpu()
        share = (time.perf_counter() - started) / len(some)
        for one, x_CHW, finite in zip(some, images, finite_B.tolist(), strict=True):
            yield _solved(one, crop(x_CHW, one.size) if finite else None, share)


def _solved(active: ActiveImage, image_CHW: Tensor | None, seconds: float) -> Solved:
    """A finished photo that took so many seconds more; None where its latent diverged."""
    error = DIVERGED if image_CHW is None else None
    return Solved(active.job.key, image_CHW, active.nfe, active.seconds + seconds, error, active.job.sample)
