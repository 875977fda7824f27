"""What the parts of `make bench` share: their settings, the recipes, the models and the photos."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from benchmarks.experiment_photos import archive_photos, sample_photos
from benchmarks.measured_photos import Measurements, measure_photos
from benchmarks.speed.random_ldm import LDM, random_ldm
from flashray.degradations import Degradation, make_degradation
from flashray.engine import Job
from flashray.metrics import LPIPS, MetricUnavailable, load_lpips
from flashray.pipeline.run_config import ReconstructConfig, parse_args
from flashray.prior import LatentPrior, load_prior
from flashray.schedule import NoiseSchedule
from flashray.severity import SeverityEncoder, load_severity_encoder

Part = Literal["packing", "slot_utilization", "engine", "throughput", "flops", "quality", "options", "pipeline"]


@dataclass(frozen=True)
class BenchConfig:
    """What to measure.

    Attributes:
        output: folder for bench.json (flat numbers), bench_tables.json (rows) and bench.md (both, for people); a second
            call keeps what other parts have written there.
        recipes: YAML files of flash recipes of one degradation family; the first is the pipeline's.
        job: the reconstruction job's script.
        photos: folder of clean photos; default crops of those inside scikit-image and scikit-learn.
        offset, stride: every stride-th of the sorted photos from offset on.
        parts: packing, slot_utilization, engine, throughput, flops, quality, options, pipeline.
        prior: bundled, a folder or a hub id, or random-ldm: random weights of an LDM's size, for engine, throughput and
            flops.
        images: for quality.
        full_images: of them through the full chain.
        full_dc_step: the full chain's step size (Latent-DPS, ancestral).
        slots: batch sizes of the engine part.
        steps: updates of each timed flight.
        options: of `benchmark.options`, to compare with float32.
        pipeline_images: few and many, see `pipeline_over_engine`.
        threads: of this process; default torch's.
    """

    recipes: list[str]
    job: str
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


class Room:
    """What the parts share, each made when it is first asked for."""

    def __init__(self, config: BenchConfig) -> None:
        self.config, self.device = config, torch.device(config.device)

    @cached_property
    def recipes(self) -> dict[str, ReconstructConfig]:
        """The recipes by their files' names."""
        place = ["--archive", "/archive", "--output", "/output"]
        return {Path(name).stem: parse_args(["--config", name, *place]) for name in self.config.recipes}

    @property
    def recipe(self) -> ReconstructConfig:
        return next(iter(self.recipes.values()))

    @cached_property
    def prior(self) -> LatentPrior:
        if self.config.prior == LDM:
            return random_ldm(self.device)
        return load_prior(self.config.prior, self.device)

    @cached_property
    def encoder(self) -> SeverityEncoder:
        return load_severity_encoder(self.recipe.start.severity_encoder, self.device)

    @cached_property
    def degradation(self) -> Degradation:
        return make_degradation(self.recipe.degradation.name, self.recipe.degradation.settings)

    @cached_property
    def lpips(self) -> LPIPS | None:
        try:
            return load_lpips("vgg").to(self.device)
        except MetricUnavailable:
            return None

    @cached_property
    def photos(self) -> tuple[list[str], Tensor]:
        """Keys and [N, 3, H, W]."""
        config, size = self.config, self.prior.sample_size
        if config.photos is None:
            found = sample_photos(config.images, size)
        else:
            found = archive_photos(config.photos, config.images, size, config.offset, config.stride)
        return found.keys, found.x_NCHW

    @cached_property
    def measured(self) -> Measurements:
        keys, x = self.photos
        noise = self.recipe.degradation.noise_range
        return measure_photos(x, keys, self.prior, self.encoder, self.degradation, noise)

    @cached_property
    def one_photo(self) -> tuple[Measurements, torch.Size]:
        """A photo measured, and the shape of its latent."""
        keys, x = self.photos
        measured = measure_photos(x[:1], keys[:1], self.prior, None, self.degradation, 0.05)
        return measured, self.prior.encode(measured.x_NCHW).shape[1:]

    def jobs(self, starts: Sequence[int]) -> list[Job]:
        """Images with these start steps, from noise: what they show does not matter to a clock."""
        measured, shape = self.one_photo
        generator = torch.Generator().manual_seed(0)
        return [
            Job(
                key=str(n),
                seed=n,
                y=measured.y_NCHW[0],
                parameters={name: value[0] for name, value in measured.parameters.items()},
                noise_std=0.05,
                z_start=torch.randn(shape, generator=generator).to(self.device),
                start_step=step,
            )
            for n, step in enumerate(starts)
        ]

    @property
    def timed_jobs(self) -> list[Job]:
        """As many images as the largest batch, `steps` updates each."""
        return self.jobs([self.config.steps] * max(self.config.slots))

    @property
    def flight(self) -> tuple[LatentPrior, Degradation, NoiseSchedule]:
        """What a flight of jobs needs besides."""
        return self.prior, self.degradation, self.prior.schedule

    @property
    def machine(self) -> str:
        if self.device.type == "cuda":
            return torch.cuda.get_device_name(self.device)
        return f"{torch.get_num_threads()} CPU threads ({platform.machine()})"
