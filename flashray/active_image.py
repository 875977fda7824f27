"""A photo in flight: what it is solved from, where it has come to, and the photos that a solver sees together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flashray.degradations.base import Degradation, Parameters, alike
from flashray.errors import ConfigError
from flashray.prior import LatentPrior
from flashray.seeding import STREAM_START, normal
from flashray.solvers.solver import Problem
from flashray.windows import LatentGrid, Windows, crop


@dataclass(frozen=True)
class Regions:
    """A region-adaptive start: where each window of a photo begins."""

    start_K: Tensor  # [K] long on the CPU, 0 … the photo's start step, one of which it is
    z_hat: Tensor  # [C, h, w] the estimate that windows vote for before they begin


@dataclass(frozen=True)
class Job:
    """One photo to solve. Tensors have no batch dimension."""

    key: str  # the image's name in its archive
    seed: int  # `image_seed(run seed, key)`, or `sample_seed` of it; all of the restoration's noise follows from it
    y: Tensor  # [3, H', W'] measurement in [-1, 1], of the photo without padding
    parameters: Parameters  # of the degradation
    noise_std: float  # on the [0, 1] scale
    z_start: Tensor  # [C, h, w] start latent of the padded photo
    start_step: int  # 0 … N; the number of updates
    regions: Regions | None = None  # where windows begin; None where all do at `start_step`
    sigma_hat: float = math.nan  # σ̂ of the image; NaN without an encoder
    weight: Tensor | None = None  # [h, w] fusion weights of the padded photo; None where they are not learned
    residual: Tensor | None = None  # [3, H, W] what is added to y before fusion; None where none is predicted
    sample: int = 0  # its number, where a photo is restored several times

    @property
    def touched(self) -> bool:
        """Whether anything of the decoded latent reaches the restored image."""
        return self.weight is None or bool(self.weight.any())


@dataclass(frozen=True)
class Solved:
    """A finished image: [3, H, W] in [-1, 1], or None with an `error`; `key` and `sample` are those of its job.

    `nfe` is the denoiser's evaluations of its windows over their number, `seconds` its share of its steps' time.
    """

    key: str
    image: Tensor | None
    nfe: float
    seconds: float
    error: str | None = None
    sample: int = 0


@dataclass(eq=False)
class ActiveImage:
    """A photo in flight: its latent z_i, the index of its next update, and its seconds so far."""

    job: Job
    z: Tensor
    step: int
    windows: Windows  # of its latent
    size: tuple[int, int]  # (H, W) of the photo in pixels
    # [h, w], positions are active at update i where this is > i; None where all always are
    start_hw: Tensor | None = None
    z_hat: Tensor | None = None  # [C, h, w] what windows vote for before they begin; None where all begin at once
    noise: Tensor | None = None  # [C, h, w] the fixed start noise of positions that wait; None where none do
    seconds: float = 0.0

    @property
    def nfe(self) -> float:
        """Denoiser evaluations over windows: Σ_k s_k / K."""
        regions = self.job.regions
        return float(self.job.start_step) if regions is None else regions.start_K.double().mean().item()

    def active(self) -> Tensor | None:
        """[K] bool: the windows that the denoiser looks at in the next update; None for all."""
        return None if self.job.regions is None else self.job.regions.start_K > self.step


@torch.no_grad()
def grid_of(prior: LatentPrior) -> LatentGrid:
    """The prior's latent factor and the side of its windows, read off what it makes of a blank image."""
    blank = torch.zeros(1, 3, prior.sample_size, prior.sample_size, device=prior.device, dtype=prior.scale.dtype)
    side = prior.encode(blank).shape[-1]
    return LatentGrid(prior.sample_size // side, side)


def photo_size(degradation: Degradation, job: Job) -> tuple[int, int]:
    """(H, W) in pixels of the photo that a job measures."""
    return degradation.image_size((job.y.shape[1], job.y.shape[2]))


def activate(job: Job, size: tuple[int, int], grid: LatentGrid, device: torch.device) -> ActiveImage:
    """A job at its start; ConfigError where its latent or its regions do not fit the photo."""
    windows, regions = grid.windows(size), job.regions
    if tuple(job.z_start.shape[1:]) != windows.size:
        raise ConfigError(
            f"{job.key}: the start latent has {tuple(job.z_start.shape[1:])} positions, and a photo of "
            f"{size[1]} x {size[0]} pixels has {windows.size}"
        )
    image = ActiveImage(job, job.z_start.to(device), job.start_step - 1, windows, size)
    if regions is None:
        return image
    if len(regions.start_K) != len(windows) or int(regions.start_K.max()) != job.start_step:
        raise ConfigError(
            f"{job.key}: {len(windows)} windows, the latest of which starts at {job.start_step}, are given "
            f"{len(regions.start_K)} starts up to {int(regions.start_K.max())}"
        )
    if bool((regions.start_K < job.start_step).any()):
        # a position is active where one of its windows is
        image.start_hw = windows.greatest(regions.start_K).to(device)
        image.z_hat = regions.z_hat.to(image.z)
        image.noise = start_noise(job.seed, image.z)
    return image


def start_noise(seed: int, z_CHW: Tensor) -> Tensor:
    """[C, h, w] the ε of a photo's start latent."""
    seed_1 = torch.tensor([seed], device=z_CHW.device)
    return normal(seed_1, torch.zeros_like(seed_1), tuple(z_CHW.shape), STREAM_START)[0].to(z_CHW)


@dataclass(frozen=True)
class SizeGroup:
    """Photos of one size, with parameters of the same names: what the solver sees at once."""

    active: list[ActiveImage]
    seed_B: Tensor
    problem: Problem


def group(
    prior: LatentPrior, degradation: Degradation, grid: LatentGrid, active: Sequence[ActiveImage]
) -> list[SizeGroup]:
    """The active by the sizes of their measurements and by their kinds of parameters (`alike`)."""
    return [
        SizeGroup(some, *make_problem(prior, degradation, [image.job for image in some], grid))
        for some in alike(active, lambda image: (image.job.y, image.job.parameters))
    ]


def make_problem(
    prior: LatentPrior, degradation: Degradation, jobs: list[Job], grid: LatentGrid | None = None
) -> tuple[Tensor, Problem]:
    """([B] seeds, the problem) of photos that are `alike`; latents are of the padded photo, images and A of its own."""
    device, grid = prior.device, grid or grid_of(prior)
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
        valid=grid.valid_size(size),
    )
    return torch.tensor([job.seed for job in jobs], device=device), problem
