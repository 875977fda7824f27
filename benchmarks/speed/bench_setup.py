"""What the parts of `make bench` share: their settings, the recipes, the models and the photos."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch

from benchmarks.experiment_photos import Photos, archive_photos, sample_photos
from benchmarks.observations import Observed, observe
from benchmarks.speed.random_ldm import LDM, random_ldm
from flashray.active_image import Job
from flashray.degradations import Degradation
from flashray.metrics import LPIPS, MetricUnavailable, load_lpips
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import Recipe, SolverConfig, load_recipe
from flashray.restorer import Restorer
from flashray.schedule import NoiseSchedule
from flashray.severity import Start, load_severity_encoder

Part = Literal["packing", "slot_utilization", "engine", "throughput", "flops", "quality", "options", "pipeline"]


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Args:
        recipes: flash recipes of one degradation family, by name or file; the first is the pipeline's.
        output: folder for bench.json (flat numbers), bench_tables.json (rows) and bench.md (both, for people); a second
            call keeps what other parts have written there.
        photos: folder of clean photos; default crops of those inside scikit-image and scikit-learn.
        offset, stride: every stride-th of the sorted photos from offset on.
        parts: packing, slot_utilization, engine, throughput, flops, quality, options, pipeline.
        prior: bundled, a folder or a hub id, or random-ldm: random weights of an LDM's size, for engine, throughput and
            flops.
        images: for quality.
        full_images: of them through the full chain.
        full_dc_step: the full chain's step size (Latent-DPS, ancestral).
        slots: batch sizes of the engine part.
        steps: updates of each timed image.
        options: of `benchmarks.speed.device_options`, to compare with float32.
        pipeline_images: few and many, see `pipeline_over_engine`.
        threads: of this process; default torch's.
    """

    recipes: list[str] = field(
        default_factory=lambda: ["gaussian_blur_flash_latent_dps", "gaussian_blur_flash_proximal"]
    )
    output: str = "build"
    photos: str | None = None
    offset: int = 0
    stride: int = 1
    parts: list[Part] = field(
        default_factory=lambda: ["packing", "slot_utilization", "engine", "flops", "quality", "options", "pipeline"]
    )
    prior: str = "bundled"
    device: str = "cpu"
    images: int = 32
    full_images: int = 4
    full_dc_step: float = 1.0
    slots: list[int] = field(default_factory=lambda: [1, 4, 16])
    steps: int = 3
    repeats: int = 3
    options: list[str] = field(
        default_factory=lambda: ["bf16", "channels_last", "channels_last bf16", "one thread bf16"]
    )
    pipeline_images: tuple[int, int] = (32, 256)
    threads: int | None = None


class SpeedSetup:
    """What the parts share, each made when it is first asked for."""

    def __init__(self, config: BenchConfig) -> None:
        self.config, self.device = config, torch.device(config.device)

    @cached_property
    def recipes(self) -> dict[str, Recipe]:
        return {name: load_recipe(name) for name in self.config.recipes}

    @cached_property
    def prior(self) -> LatentPrior:
        if self.config.prior == LDM:
            return random_ldm(self.device)
        return load_prior(self.config.prior, self.device)

    @cached_property
    def restorers(self) -> dict[str, Restorer]:
        """The recipes' restorers, with one prior and one encoder."""
        first = next(iter(self.recipes.values()))
        encoder = load_severity_encoder(first.start.severity_encoder, self.device)
        return {
            name: Restorer(recipe, self.prior, encoder, measurement="simulated")
            for name, recipe in self.recipes.items()
        }

    @property
    def restorer(self) -> Restorer:
        """The first recipe's."""
        return next(iter(self.restorers.values()))

    @cached_property
    def full_chain(self) -> Restorer:
        """Latent-DPS from pure noise over the prior's whole chain, which needs no encoder."""
        settings = {"dc_step": self.config.full_dc_step}
        recipe = dataclasses.replace(
            next(iter(self.recipes.values())),
            start=Start(mode="full"),
            solver=SolverConfig(steps=len(self.prior.schedule), settings=settings),
        )
        return Restorer(recipe, self.prior, measurement="simulated", slots=max(self.config.slots))

    @cached_property
    def lpips(self) -> LPIPS | None:
        try:
            return load_lpips("vgg").to(self.device)
        except MetricUnavailable:
            return None

    @cached_property
    def photos(self) -> Photos:
        config, size = self.config, self.prior.sample_size
        if config.photos is None:
            return sample_photos(config.images, size)
        return archive_photos(config.photos, config.images, size, config.offset, config.stride)

    @cached_property
    def observed(self) -> list[Observed]:
        """The photos as the first recipe's restorer observes them."""
        return observe(self.restorer, self.photos)

    @cached_property
    def one_job(self) -> Job:
        """A photo that starts at the full chain."""
        (one,) = observe(self.full_chain, self.photos.first(1))
        sigma_hat_B = one.estimate.sigma_hat_B
        (job,) = self.full_chain.begin(one.measured, None, sigma_hat_B, self.full_chain.start_steps(sigma_hat_B)[0])
        return job

    def jobs(self, starts: Sequence[int]) -> list[Job]:
        """Images with these start steps, from noise: what they show does not matter to a clock."""
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(self.one_job.z_start.shape, generator=generator) for _ in starts]
        return [
            dataclasses.replace(self.one_job, key=str(n), seed=n, z_start=noise[n].to(self.device), start_step=step)
            for n, step in enumerate(starts)
        ]

    @property
    def timed_jobs(self) -> list[Job]:
        """As many images as the largest batch, `steps` updates each."""
        return self.jobs([self.config.steps] * max(self.config.slots))

    @property
    def engine_arguments(self) -> tuple[LatentPrior, Degradation, NoiseSchedule]:
        """What the engine needs beside jobs."""
        return self.prior, self.full_chain.degradation, self.prior.schedule

    @property
    def machine(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
