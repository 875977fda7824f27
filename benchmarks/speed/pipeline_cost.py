"""What the job costs beside its engine, and how true its quote is: runs of the very command, timed from outside."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.measured_photos import measure_photos, run_cell
from benchmarks.speed.timing import precision, seconds_of
from flashray.degradations import make_degradation
from flashray.errors import FlashrayError
from flashray.images import encode_png
from flashray.pipeline.bench import start_of
from flashray.pipeline.precision import native
from flashray.pipeline.run_config import ReconstructConfig
from flashray.pipeline.slots import CPU_SLOTS
from flashray.prior import LatentPrior
from flashray.severity import SeverityEncoder
from flashray.solvers import make_solver


def write_archive(folder: Path, x_NCHW: Tensor, count: int) -> None:
    """`count` clean PNGs: the photos over and over under other keys, each to be degraded by its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n:05d}.png").write_bytes(encode_png(x_NCHW[n % len(x_NCHW)]))


def run_job(command: Sequence[str], output: Path, arguments: Sequence[str]) -> tuple[float, dict[str, float]]:
    """(wall seconds, summary.json) of one run of the job; FlashrayError with what it said where it fails."""
    began = time.perf_counter()
    done = subprocess.run([*command, "--output", str(output), *arguments], capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise FlashrayError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    place = output / "summary.json"
    return seconds, json.loads(place.read_text()) if place.exists() else {}


def pipeline_over_engine(
    command: Sequence[str],
    work: Path,
    config: ReconstructConfig,
    prior: LatentPrior,
    encoder: SeverityEncoder,
    x_NCHW: Tensor,
    few: int = 32,
    many: int = 256,
) -> dict[str, float]:
    """The job's throughput over that of the bare engine, and its quote over what it took.

    Both restore `few` and then `many` images with simulated measurements; the difference of the two runs is what
    images cost, and what is left of the smaller one is start-up: Ray, models, tracking. The engine's part degrades,
    encodes, solves and decodes the same images in this process, warm; the job also reads, looks a second time, writes,
    commits and tracks. Neither scores: what metrics cost is a matter of which are asked for.

    Args:
        command: the job with its recipe.
        work: an empty folder for archive and runs.
        config: the recipe as the job reads it.
    """
    degradation = config.degradation
    archive = {count: work / f"archive-{count}" for count in (few, many)}
    family = make_degradation(degradation.name, degradation.settings)
    solver = make_solver(config.solver.name, config.solver.settings)
    schedule = config.solver.chain(prior.schedule)

    def engine(count: int) -> None:
        keys = [f"{n:05d}.png" for n in range(count)]
        x = torch.stack([x_NCHW[n % len(x_NCHW)] for n in range(count)])
        with precision(prior, native(prior.device.type) if config.precision == "auto" else config.precision):
            measured = measure_photos(x, keys, prior, encoder, family, degradation.noise_range, config.seed)
            run_cell(measured, prior, start_of(config), solver, schedule, config.slots or CPU_SLOTS, config.solver.eta)

    engine(config.slots or CPU_SLOTS)  # the first of everything is slow, and would count for `few` alone
    job, bare, said = {}, {}, {}
    for count in (few, many):
        write_archive(archive[count], x_NCHW, count)
        arguments = ["--archive", str(archive[count]), "--measurement", "simulated", "--metrics", "[]"]
        output = work / f"run-{count}"
        if count == many:
            run_job(command, output, [*arguments, "--plan_only", "true"])
            # the plan pass belongs to the job's work: a run of its own, without the quote's measurement
            said = run_job(command, output, arguments)[1]
            output = work / f"timed-{count}"
        job[count] = run_job(command, output, arguments)[0]
        bare[count] = seconds_of(partial(engine, count), prior.device)
    images = many - few
    each_job, each_bare = (job[many] - job[few]) / images, (bare[many] - bare[few]) / images
    return {
        "engine_seconds_per_image": each_bare,
        "pipeline_seconds_per_image": each_job,
        "start_up_seconds": job[few] - few * each_job,
        "ratio": each_bare / each_job,
        "quote_over_actual": said["predicted_over_actual_seconds"],
    }
