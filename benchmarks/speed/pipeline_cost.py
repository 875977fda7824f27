"""What the job costs beside its engine, and how true its quote is: runs of the very command, timed from outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import Tensor

from benchmarks.speed.timing import precision
from benchmarks.stopwatch import seconds_of
from flashray.device import native_precision
from flashray.errors import FlashrayError
from flashray.images import encode_png
from flashray.pipeline.run_folder import run_uri
from flashray.restorer import Restorer


def write_archive(folder: Path, x_NCHW: Tensor, count: int) -> None:
    """`count` clean PNGs: the photos over and over under other keys, each to be degraded by its own."""
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(count):
        (folder / f"{n:05d}.png").write_bytes(encode_png(x_NCHW[n % len(x_NCHW)]))


def run_job(archive: Path, output: Path, arguments: Sequence[str]) -> tuple[float, dict[str, float]]:
    """(wall seconds, summary.json) of one `flashray restore`; FlashrayError with what it said where it fails."""
    command = [sys.executable, "-m", "flashray", "restore", str(archive), str(output), *arguments]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode:
        raise FlashrayError(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    path = Path(run_uri(str(output), "summary.json"))
    return seconds, json.loads(path.read_text()) if path.exists() else {}


def pipeline_over_engine(
    recipe: str, work: Path, restorer: Restorer, x_NCHW: Tensor, few: int = 32, many: int = 256
) -> dict[str, float]:
    """The job's throughput over that of the bare engine, and its quote over what it took.

    Both restore `few` and then `many` images with simulated measurements; the difference of the two runs is what
    images cost, and what is left of the smaller one is start-up: Ray, models, tracking. The engine's part measures,
    estimates, solves and decodes the same images in this process, warm; the job also reads, estimates a second time,
    writes, commits and tracks. Neither scores: what metrics cost is a matter of which are asked for.

    Args:
        recipe: name or file of the recipe.
        work: an empty folder for archive and runs.
        restorer: the recipe's, with simulated measurements.
    """
    archive = {count: work / f"archive-{count}" for count in (few, many)}
    options = ["--recipe", recipe, "--device", restorer.device.type, "--measurement", "simulated", "--metrics", "[]"]

    def engine(count: int) -> None:
        photos = [restorer.measurer.photo(f"{n:05d}.png", x_NCHW[n % len(x_NCHW)]) for n in range(count)]
        with precision(restorer.prior, native_precision(restorer.device.type)):
            restorer.restore_photos(photos)

    engine(restorer.slots)  # the first of everything is slow, and would count for `few` alone
    job, bare, said = {}, {}, {}
    for count in (few, many):
        write_archive(archive[count], x_NCHW, count)
        output = work / f"run-{count}"
        if count == many:
            run_job(archive[count], output, [*options, "--plan-only"])
            # the plan pass belongs to the job's work: a run of its own, without the quote's measurement
            said = run_job(archive[count], output, options)[1]
            output = work / f"timed-{count}"
        job[count] = run_job(archive[count], output, options)[0]
        bare[count] = seconds_of(partial(engine, count), restorer.device)
    images = many - few
    each_job, each_bare = (job[many] - job[few]) / images, (bare[many] - bare[few]) / images
    return {
        "engine_seconds_per_image": each_bare,
        "pipeline_seconds_per_image": each_job,
        "start_up_seconds": job[few] - few * each_job,
        "ratio": each_bare / each_job,
        "quote_over_actual": said["predicted_over_actual_seconds"],
    }
