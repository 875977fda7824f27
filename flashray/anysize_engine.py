"""In-flight batched reverse diffusion of photos of any size: every photo is at its own step.

A photo is one latent. At every step the windows of all photos in flight are gathered into denoiser batches, and the
solver is called once for the photos of one size (docs/architecture.md).
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Parameters
from flashray.errors import ConfigError
from flashray.position_noise import normal_at as normal
from flashray.prior import LatentPrior
from flashray.schedule import NoiseSchedule
from flashray.seeding import STREAM_START
from flashray.severity.regions import hold, mean_nfe, position_starts
from flashray.solvers.base import Problem, Solver, Step
from flashray.windows import LatentGrid, View, Windows, crop, vote, windowed_epsilon

log = logging.getLogger(__name__)

Predict = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]  # (z_BCHW, timestep_B, ᾱ_B) → (ẑ0, ε)


@dataclass(frozen=True)
class Regions:
    """A region-adaptive start: where each window of a photo begins.

    Attributes:
        start_K: [K] long on the CPU, 0 … the photo's start step, one of which it is.
        z_hat: [C, h, w] the estimate that windows vote for before they begin.
    """

    start_K: Tensor
    z_hat: Tensor


@dataclass(frozen=True)
class Job:
    """One photo to solve. Tensors have no batch dimension.

    Attributes:
        key: the image's name in its archive.
        seed: `image_seed(run seed, key)`; all of the image's noise follows from it.
        y: [3, H', W'] measurement in [-1, 1], of the photo without padding.
        parameters: the degradation's parameters of this image.
        noise_std: on the [0, 1] scale.
        z_start: [C, h, w] start latent of the padded photo.
        start_step: 0 … N; the number of updates.
        regions: where windows begin; None where all do at `start_step`.
    """

    key: str
    seed: int
    y: Tensor
    parameters: Parameters
    noise_std: float
    z_start: Tensor
    start_step: int
    regions: Regions | None = None


@dataclass(frozen=True)
class Solved:
    """A finished image: [3, H, W] in [-1, 1], or None with an `error`.

    `nfe` is the number of denoiser evaluations of its windows over the number of windows. `seconds` is the image's
    share of the time of the steps it took part in.
    """

    key: str
    image: Tensor | None
    nfe: float
    seconds: float
    error: str | None = None


@dataclass(eq=False)
class ActivePhoto:
    """A photo in flight: its latent z_i, the index of its next update, and its seconds so far.

    Attributes:
        windows: of its latent.
        size: (H, W) of the photo in pixels.
        start_hw: [h, w], positions are active at update i where this is > i; None where all always are.
        z_hat: [C, h, w] what windows vote for before they begin; None where all begin at once.
        noise: [C, h, w] the fixed start noise of positions that wait; None where none do.
    """

    job: Job
    z: Tensor
    step: int
    windows: Windows
    size: tuple[int, int]
    start_hw: Tensor | None = None
    z_hat: Tensor | None = None
    noise: Tensor | None = None
    seconds: float = 0.0

    @property
    def nfe(self) -> float:
        """Denoiser evaluations over windows."""
        return float(self.job.start_step) if self.job.regions is None else mean_nfe(self.job.regions.start_K)

    def active(self) -> Tensor | None:
        """[K] bool: the windows that the denoiser looks at in the next update; None for all."""
        return None if self.job.regions is None else self.job.regions.start_K > self.step


@dataclass
class SlotUtilization:
    """Counts the share of slots that updated a window; pass it to `solve` as `on_step`."""

    slots: int
    useful: int = 0
    steps: int = 0

    def __call__(self, count: int) -> None:
        self.useful, self.steps = self.useful + count, self.steps + 1

    @property
    def share(self) -> float:
        """Slot-steps that updated a window over all slot-steps."""
        return self.useful / (self.slots * self.steps) if self.steps else 1.0


@torch.no_grad()
def grid_of(prior: LatentPrior) -> LatentGrid:
    """The prior's latent factor and the side of its windows, read off what it makes of a blank image."""
    blank = torch.zeros(1, 3, prior.sample_size, prior.sample_size, device=prior.device, dtype=prior.scale.dtype)
    side = prior.encode(blank).shape[-1]
    return LatentGrid(prior.sample_size // side, side)


def solve(
    prior: LatentPrior,
    degradation: Degradation,
    solver: Solver,
    schedule: NoiseSchedule,
    jobs: Iterable[Job],
    slots: int = 8,
    eta: float = 1.0,
    on_step: Callable[[int], None] | None = None,
    grid: LatentGrid | None = None,
) -> Iterator[Solved]:
    """Solve photos of any sizes, up to `slots` windows at a time; yields each as it finishes.

    Photos board in the order of `jobs` while their windows fit the slots (give them in descending start step, so that a
    batch drains evenly); one that has more windows than there are slots flies alone, its windows in several denoiser
    batches. A photo takes exactly `start_step` updates, with noise from its own (seed, step, position) and norms of its
    own, so its result does not depend on its neighbours beyond the arithmetic's rounding. A step that runs out of
    memory halves the slots and is taken again; the photos that lost theirs wait with the latents that they have
    reached.

    Args:
        schedule: the respaced schedule that start steps refer to.
        slots: windows in a denoiser batch at most, ≥ 1.
        eta: DDIM's η of the reverse steps; 1 is ancestral sampling.
        on_step: called for every denoiser batch with the number of windows in it.
        grid: the latent factor and the windows' side; the prior's own by default.

    Raises:
        ConfigError: if a start latent or the starts of its windows are not those of its photo's size.
        torch.OutOfMemoryError: where one photo with one window at a time is too large.
    """
    grid = grid or grid_of(prior)
    queue = deque(jobs)
    waiting: deque[ActivePhoto] = deque()  # begun, and without slots since memory ran out
    flights: list[ActivePhoto] = []
    groups: list[Group] = []
    boarding = True
    while queue or waiting or flights:
        final: list[ActivePhoto] = []  # nothing to solve: the start latent is what is decoded
        while queue or waiting:
            size = waiting[0].size if waiting else photo_size(degradation, queue[0])
            taken = _windows(flights) + _windows(final)
            if taken and taken + len(grid.windows(size)) > slots:
                break
            boarding = True
            flight = waiting.popleft() if waiting else board(queue.popleft(), size, grid, prior.device)
            (flights if flight.job.start_step else final).append(flight)
        if final:
            yield from _land(prior, final)
            continue
        started = time.perf_counter()
        try:
            if boarding:
                groups = group(prior, degradation, grid, flights)
                boarding = False
            batches = update(prior, solver, schedule, groups, slots, eta)
        except torch.OutOfMemoryError:
            slots = min(slots, _windows(flights))
            if slots == 1:
                raise
            slots //= 2
            log.warning("out of memory with %d photos in flight; going on with %d windows", len(flights), slots)
            flights, left = _fitting(flights, slots)
            waiting.extendleft(reversed(left))
            boarding = True
            continue
        each = (time.perf_counter() - started) / _windows(flights)
        for flight in flights:
            flight.seconds += each * len(flight.windows)
        if on_step is not None:
            for count in batches:
                on_step(count)
        landed = [flight for flight in flights if flight.step < 0]
        if landed:
            flights = [flight for flight in flights if flight.step >= 0]
            boarding = True
            yield from _land(prior, landed)


# --- boarding ---


def photo_size(degradation: Degradation, job: Job) -> tuple[int, int]:
    """(H, W) in pixels of the photo that a job measures."""
    return degradation.image_size((job.y.shape[1], job.y.shape[2]))


def board(job: Job, size: tuple[int, int], grid: LatentGrid, device: torch.device) -> ActivePhoto:
    """The flight of a job at its start; ConfigError where its latent or its regions do not fit the photo."""
    windows, regions = grid.windows(size), job.regions
    if tuple(job.z_start.shape[1:]) != windows.size:
        raise ConfigError(
            f"{job.key}: the start latent has {tuple(job.z_start.shape[1:])} positions, and a photo of "
            f"{size[1]} x {size[0]} pixels has {windows.size}"
        )
    flight = ActivePhoto(job, job.z_start.to(device), job.start_step - 1, windows, size)
    if regions is None:
        return flight
    if len(regions.start_K) != len(windows) or int(regions.start_K.max()) != job.start_step:
        raise ConfigError(
            f"{job.key}: {len(windows)} windows, the latest of which starts at {job.start_step}, are given "
            f"{len(regions.start_K)} starts up to {int(regions.start_K.max())}"
        )
    if bool((regions.start_K < job.start_step).any()):
        flight.start_hw = position_starts(regions.start_K, windows).to(device)
        flight.z_hat = regions.z_hat.to(flight.z)
        flight.noise = start_noise(job.seed, flight.z)
    return flight


def start_noise(seed: int, z_CHW: Tensor) -> Tensor:
    """[C, h, w] the ε of a photo's start latent."""
    seed_1 = torch.tensor([seed], device=z_CHW.device)
    return normal(seed_1, torch.zeros_like(seed_1), tuple(z_CHW.shape), STREAM_START)[0].to(z_CHW)


def _windows(flights: Sequence[ActivePhoto]) -> int:
    return sum(len(flight.windows) for flight in flights)


def _fitting(flights: Sequence[ActivePhoto], slots: int) -> tuple[list[ActivePhoto], list[ActivePhoto]]:
    """(flights whose windows fit the slots, at least the first; the others)."""
    kept: list[ActivePhoto] = [flights[0]]
    waiting: list[ActivePhoto] = []
    for flight in flights[1:]:
        (kept if _windows(kept) + len(flight.windows) <= slots else waiting).append(flight)
    return kept, waiting


@dataclass(frozen=True)
class Group:
    """Photos of one size in flight: what the solver sees at once."""

    flights: list[ActivePhoto]
    seed_B: Tensor
    problem: Problem


def group(
    prior: LatentPrior, degradation: Degradation, grid: LatentGrid, flights: Sequence[ActivePhoto]
) -> list[Group]:
    """The flights by the sizes of their measurements, in the order in which the sizes come first."""
    by_size: dict[tuple[int, ...], list[ActivePhoto]] = {}
    for flight in flights:
        by_size.setdefault(tuple(flight.job.y.shape), []).append(flight)
    return [
        Group(some, *make_problem(prior, degradation, [flight.job for flight in some], grid))
        for some in by_size.values()
    ]


def make_problem(
    prior: LatentPrior, degradation: Degradation, jobs: list[Job], grid: LatentGrid | None = None
) -> tuple[Tensor, Problem]:
    """([B] seeds, the problem) of photos of one size; latents are of the padded photo, images and A of the photo."""
    grid, device = grid or grid_of(prior), prior.device
    y = torch.stack([job.y for job in jobs]).to(device)
    size = photo_size(degradation, jobs[0])
    parameters = {name: torch.stack([job.parameters[name] for job in jobs]).to(device) for name in jobs[0].parameters}
    problem = Problem(
        y_BCHW=y,
        operator=degradation.bind(parameters, size),
        noise_std_B=torch.tensor([job.noise_std for job in jobs], device=device),
        encode=lambda x_BCHW: prior.encode(grid.pad(x_BCHW)),
        decode=lambda z_BCHW: crop(prior.decode(z_BCHW), size),
        norm_scale=grid.norm_scale(size),
    )
    return torch.tensor([job.seed for job in jobs], device=device), problem


# --- a step ---


def update(
    prior: LatentPrior, solver: Solver, schedule: NoiseSchedule, groups: Sequence[Group], slots: int, eta: float = 1.0
) -> list[int]:
    """One update of every photo; returns the number of windows of each denoiser batch.

    Windows of photos of all sizes share batches, but where a solver wants gradients only those of photos of one size
    do: each solver call takes its own graph down. Nothing changes if a photo's update fails.
    """
    batches: list[int] = []
    flights = [flight for some in groups for flight in some.flights]
    answers: Iterator[Tensor] = iter(())

    def denoise(z_BCHW: Tensor, step_B: Tensor) -> Tensor:
        """[B, 2 C, h, w]: ẑ0 and ε."""
        timestep_B, alpha_B = schedule.timesteps[step_B], schedule.alphas_cumprod[step_B]
        return torch.cat(prior.predict(z_BCHW, timestep_B.to(z_BCHW.device), alpha_B.to(z_BCHW)), dim=1)

    if not solver.needs_gradient:
        with torch.no_grad():
            found, batches = windowed_epsilon(denoise, [view(flight, flight.z, schedule) for flight in flights], slots)
        answers = iter(found)
    results: list[Tensor] = []
    for some in groups:

        def predict(z_BCHW: Tensor, _t: Tensor, _alpha: Tensor, some: Group = some) -> tuple[Tensor, Tensor]:
            if solver.needs_gradient:
                views = [view(flight, z, schedule) for flight, z in zip(some.flights, z_BCHW, strict=True)]
                found, counts = windowed_epsilon(denoise, views, slots)
                batches.extend(counts)
            else:
                found = [next(answers) for _ in some.flights]
            z0, epsilon = torch.stack(found).chunk(2, dim=1)
            return z0, epsilon

        z_BCHW = torch.stack([flight.z for flight in some.flights])
        step_B = torch.tensor([flight.step for flight in some.flights])
        results += advance(prior, solver, schedule, some.problem, z_BCHW, step_B, some.seed_B, eta, predict)
    for flight, z in zip(flights, results, strict=True):
        flight.z, flight.step = held(flight, z, schedule), flight.step - 1
    return batches


def view(flight: ActivePhoto, z_CHW: Tensor, schedule: NoiseSchedule) -> View:
    """The photo's latent as the denoiser is to see it in its next update."""
    step, active_K = torch.tensor(flight.step), flight.active()
    if active_K is None or flight.z_hat is None or bool(active_K.all()):
        return View(z_CHW, step, flight.windows)
    alpha = schedule.alphas_cumprod[flight.step].to(z_CHW)
    estimate_and_noise = torch.cat([flight.z_hat, vote(z_CHW, flight.z_hat, alpha)])
    return View(z_CHW, step, flight.windows, active_K, estimate_and_noise)


def held(flight: ActivePhoto, z_next_CHW: Tensor, schedule: NoiseSchedule) -> Tensor:
    """z_next with the positions that wait at their own start noise; at the end those that never joined are ẑ."""
    if flight.start_hw is None or flight.z_hat is None or flight.noise is None:
        return z_next_CHW
    alpha_prev = schedule.alphas_cumprod_prev[flight.step] if flight.step else torch.ones(())
    active_hw = flight.start_hw > flight.step
    return hold(z_next_CHW, active_hw, flight.z_hat, flight.noise, alpha_prev.to(z_next_CHW))


def advance(
    prior: LatentPrior,
    solver: Solver,
    schedule: NoiseSchedule,
    problem: Problem | None,
    z_BCHW: Tensor,
    step_B: Tensor,
    seed_B: Tensor,
    eta: float = 1.0,
    predict: Predict | None = None,
) -> Tensor:
    """One solver update of photos of one size, of which photo b is at step `step_B[b]`; no graph outlives it.

    Args:
        predict: (ẑ0, ε) of whole latents; the prior's own, for latents of one window, by default.
    """
    device = z_BCHW.device
    step_B = step_B.cpu()
    with torch.set_grad_enabled(solver.needs_gradient):
        z = z_BCHW.detach().requires_grad_(solver.needs_gradient)
        timestep_B = schedule.timesteps[step_B].to(device)
        alpha_B = schedule.alphas_cumprod[step_B].to(device, z.dtype)
        z0, epsilon = (predict or prior.predict)(z, timestep_B, alpha_B)
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


# --- landing ---


@torch.no_grad()
def _land(prior: LatentPrior, flights: Sequence[ActivePhoto]) -> Iterator[Solved]:
    """Decode finished latents, those of one size together; a result that is not finite is an error, not an image."""
    by_size: dict[tuple[int, ...], list[ActivePhoto]] = {}
    for flight in flights:
        by_size.setdefault(tuple(flight.z.shape), []).append(flight)
    for some in by_size.values():
        started = time.perf_counter()
        z_BCHW = torch.stack([flight.z for flight in some])
        x_BCHW = prior.decode(z_BCHW)
        # before the clamp, which makes an infinity look like white
        finite_B = torch.isfinite(z_BCHW).flatten(1).all(dim=1) & torch.isfinite(x_BCHW).flatten(1).all(dim=1)
        images = x_BCHW.clamp(-1, 1).cpu()
        share = (time.perf_counter() - started) / len(some)
        for flight, image, finite in zip(some, images, finite_B.tolist(), strict=True):
            seconds = flight.seconds + share
            if finite:
                yield Solved(flight.job.key, crop(image, flight.size), flight.nfe, seconds)
            else:
                error = "the solver diverged: the reconstruction is not finite; lower the recipe's step size"
                yield Solved(flight.job.key, None, flight.nfe, seconds, error)
