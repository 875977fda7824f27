"""Computes cells: measurements, estimates and restorations of their photos, and a row for every image."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import time
from collections.abc import Sequence
from typing import Any, Literal

import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.cell_models import CellModels, Setting
from benchmarks.cells import Cell
from benchmarks.experiment_photos import Bundle, Photos
from benchmarks.observations import Observed, believing, mean_flash_step, observe
from benchmarks.one_pass import as_restored, restore_in_one_pass
from benchmarks.results import PICTURES, ROWS, Result
from benchmarks.sigma_sources import with_sigma
from benchmarks.stopwatch import seconds_of
from flashray.images import encode_png
from flashray.metrics import LPIPS, mean_interval
from flashray.restored import Restored
from flashray.restorer import BATCH, Restorer

log = logging.getLogger(__name__)
ENOUGH = 32  # images: a distance between smaller sets says little
METRICS = ("psnr", "ssim", "lpips")


def compute(cell: Cell, photos: Bundle, setting: Setting) -> Result | Exception:
    """One cell; whatever an operator or a network raises is the cell's own loss."""
    try:
        models = models_of(setting)
        size = models.prior(cell).sample_size
        return compute_cell(models, cell, photos[cell.task.photos, size], photos.get(("calibration", size)))
    except Exception as error:
        log.exception("%s", cell.name)
        return error


@functools.lru_cache(maxsize=1)
def models_of(setting: Setting) -> CellModels:
    """This process's models, kept from cell to cell."""
    return CellModels(setting)


def compute_cell(models: CellModels, cell: Cell, photos: Photos, calibration: Photos | None = None) -> Result:
    """The cell's result on its photos.

    Args:
        calibration: clean photos that nothing is reported on, for a σ̂ that has to be calibrated.
    """
    began = time.perf_counter()
    torch.set_num_threads(models.setting.threads)
    restorer, method = models.restorer(cell), cell.method
    batches = observe(restorer, photos.first(cell.images), cell.task.severity)
    if method.solver is None:
        restored = _restored_in_one_pass(models, cell, restorer, batches)
    else:
        aside: list[Observed] = []
        if cell.calibration and calibration is not None:
            aside = observe(restorer, calibration.first(cell.calibration), cell.task.severity)
        batches = with_sigma(method.sigma, batches, restorer.prior, aside)
        if method.start.mode == "fixed" and method.start.step is None:
            restorer = models.restorer(cell, mean_flash_step(method.start, batches, restorer))
        given = believing(batches, restorer.degradation, cell.task.believed_times)
        restored = restorer.restore_measured([(one.measured, one.estimate) for one in given])
    images = with_grey(restored.images, batches[0].x_BCHW)
    rows = _rows(models, cell, restorer, batches, restored, images)
    summary = _summary(models, cell, rows)
    if len(rows) >= ENOUGH and models.features is not None:
        x = torch.cat([one.x_BCHW for one in batches])
        summary["distances"] = models.features.compare(
            models.features(torch.stack(images).to(models.device)), models.features(x)
        )
    summary["wall_seconds"] = round(time.perf_counter() - began, 3)
    return Result(cell, rows, _pictures(cell, batches, images), summary)


def with_grey(images: Sequence[Tensor | None], x_BCHW: Tensor) -> list[Tensor]:
    """The images, with a grey one where there was an error: it is scored as such."""
    grey = torch.zeros_like(x_BCHW[0], device="cpu")
    return [grey if image is None else image for image in images]


def scores_of(restorer: Restorer, images: Sequence[Tensor], x_NCHW: Tensor, lpips: LPIPS | None) -> dict[str, Tensor]:
    """Per-image metrics [N] on the CPU, of images against clean ones; without a network there is no `lpips`."""
    rows = [
        restorer.score({"": torch.stack(list(images[n : n + BATCH]))}, x_NCHW[n : n + BATCH], METRICS, lpips)
        for n in range(0, len(images), BATCH)
    ]
    return {name: torch.cat([row[name] for row in rows]).cpu() for name in rows[0]}


def machine(device: torch.device, setting: Setting) -> str:
    """What a table says about where its seconds come from."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {setting.precision}, {setting.slots} slots"
    return f"{_cpu()}, {setting.threads} threads a cell, {setting.precision}, {setting.slots} slots"


def _restored_in_one_pass(models: CellModels, cell: Cell, restorer: Restorer, batches: Sequence[Observed]) -> Restored:
    images: list[Tensor] = []

    def work() -> None:
        images.extend(restore_in_one_pass(cell.method.baseline or "", batches, restorer, models.swinir(cell)))

    seconds = seconds_of(work, models.device)
    return as_restored(images, _joined(batches, "sigma_hat"), seconds)


def _rows(
    models: CellModels,
    cell: Cell,
    restorer: Restorer,
    batches: Sequence[Observed],
    restored: Restored,
    images: Sequence[Tensor],
) -> pa.Table:
    """A row an image; `parameters` are what its measurement was made with."""
    n = len(images)
    scores = scores_of(restorer, images, torch.cat([one.x_BCHW for one in batches]), models.lpips)
    measured = [one.measured for one in batches]
    names = restorer.degradation.parameter_names
    columns: dict[str, list[Any]] = {
        "cell": [cell.id] * n,
        "key": [key for one in measured for key in one.keys],
        "parameters": [
            json.dumps({name: one.parameters[name][b].item() for name in names})
            for one in measured
            for b in range(len(one))
        ],
        "noise_std": [value for one in measured for value in one.noise_std_B.tolist()],
        "sigma_hat": _numbers(_joined(batches, "sigma_hat")),
        "sigma_true": _numbers(_joined(batches, "sigma_true")),
        "start_step": restored.nfe,
        "nfe": restored.nfe,
        "fallback": restored.fallback,
        "seconds": restored.seconds,
        "error": restored.errors,
        **{metric: scores[metric].double().tolist() if metric in scores else [None] * n for metric in METRICS},
    }
    return pa.table({name: columns[name] for name in ROWS.names}, schema=ROWS)


def _summary(models: CellModels, cell: Cell, rows: pa.Table) -> dict[str, Any]:
    """What the cell's JSON holds: its definition, means with 95 % intervals, and where it was computed."""
    found: dict[str, Any] = {
        "id": cell.id,
        "task": cell.task.name,
        "method": cell.method.name,
        "definition": json.loads(cell.identity),
        "images": len(rows),
        "failed": len(rows) - rows["error"].null_count,
        "fallbacks": sum(rows["fallback"].to_pylist()),
    }
    for name in (*METRICS, "nfe", "seconds"):
        interval = mean_interval(rows[name].to_pylist())
        found[name] = list(interval) if all(map(math.isfinite, interval)) else None
    return found | {"nfe_max": max(rows["nfe"].to_pylist()), "machine": machine(models.device, models.setting)}


def _pictures(cell: Cell, batches: Sequence[Observed], images: Sequence[Tensor]) -> pa.Table:
    """The first images, or those whose σ̂ and σ̄ are farthest apart."""
    hat, true = (torch.tensor(_joined(batches, which)) for which in ("sigma_hat", "sigma_true"))
    order = (hat / true).log().abs().argsort(descending=True) if cell.outliers else torch.arange(len(images))
    sources = [(one, b) for one in batches for b in range(len(one.measured))]
    rows = []
    for n in order[: cell.pictures].tolist():
        one, b = sources[n]
        row = {"key": one.measured.keys[b], "restored": encode_png(images[n]), "clean": encode_png(one.x_BCHW[b])}
        rows.append(row | {"measurement": encode_png(one.measured.select(torch.tensor([b])).shown_BCHW[0])})
    return pa.Table.from_pylist(rows, schema=PICTURES)


def _joined(batches: Sequence[Observed], which: Literal["sigma_hat", "sigma_true"]) -> list[float]:
    values = [one.estimate.sigma_hat_B if which == "sigma_hat" else one.sigma_true_B for one in batches]
    return torch.cat(values).tolist()


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [None if math.isnan(value) else value for value in values]


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{names[0]} × {os.cpu_count()}"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()} × {os.cpu_count()}"
