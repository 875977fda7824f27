"""Computes cells: the models of one process, each loaded when it is first asked for."""

from __future__ import annotations

import functools
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from benchmarks.baselines import SwinIR
from benchmarks.cells import Cell
from benchmarks.experiment_photos import Bundle, Photos
from benchmarks.measured_photos import (
    Measurements,
    Restored,
    believing,
    measure_photos,
    run_cell,
    score_in_batches,
    stopwatch,
)
from benchmarks.methods import BASELINES, ONE_PASS, TRAINED, restore, start_of
from benchmarks.results import PICTURES, ROWS, Result
from benchmarks.sigma_sources import SIGMAS, with_sigma
from flashray.degradations import Degradation, make_degradation
from flashray.errors import ConfigError
from flashray.images import encode_png
from flashray.metrics import LPIPS, Features, MetricUnavailable, load_features, load_lpips, mean_interval
from flashray.prior import LatentPrior, load_prior
from flashray.severity import SeverityEncoder, load_severity_encoder
from flashray.solvers import make_solver

log = logging.getLogger(__name__)
ENOUGH = 32  # images: a distance between smaller sets says little


@dataclass(frozen=True)
class Setting:
    """With what and where cells are computed; travels to every worker.

    Attributes:
        severity_encoders: (family of degradations, bundled:NAME or a folder); `bundled:<family>` where it is not named.
        models: folder that `models:NAME` in an experiment's file stands for.
    """

    prior: str = "bundled"
    severity_encoders: tuple[tuple[str, str], ...] = ()
    models: str = "models"
    seed: int = 0
    device: str = "cpu"
    precision: str = "float32"
    slots: int = 8
    threads: int = 1

    def place(self, source: str) -> str:
        """Where a model is, `models:NAME` resolved."""
        name = source.removeprefix("models:")
        return source if name == source else os.path.join(self.models, name)


class Workbench:
    """The models of one process, and what is done with them.

    Args:
        setting: as the driver has it.
    """

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, torch.device(setting.device)
        self._prior = functools.cache(self._load_prior)
        self._encoder = functools.cache(lambda source: load_severity_encoder(source, self.device))
        self._baseline = functools.cache(lambda name, source: TRAINED[name](source, self.device))

    def prior(self, cell: Cell) -> LatentPrior:
        return self._prior(self.setting.place(cell.method.prior or self.setting.prior))

    def encoder(self, cell: Cell) -> SeverityEncoder | None:
        """The severity encoder that the cell asks; None if it asks none."""
        if not cell.method.looks:
            return None
        family = cell.task.degradation.name
        source = cell.method.severity_encoder or dict(self.setting.severity_encoders).get(family, f"bundled:{family}")
        return self._encoder(self.setting.place(source))

    def trained(self, cell: Cell) -> SwinIR | None:
        """The trained baseline of the cell, if it has one."""
        method = cell.method
        if method.baseline not in TRAINED:
            return None
        return self._baseline(method.baseline, self.setting.place(_weights(cell)))

    @functools.cached_property
    def lpips(self) -> LPIPS | None:
        """None where its weights are not at hand; `lpips_unavailable` says why."""
        try:
            return load_lpips("vgg").to(self.device)
        except MetricUnavailable as error:
            self.lpips_unavailable = str(error)
            return None

    lpips_unavailable = ""

    @functools.cached_property
    def features(self) -> Features | None:
        """What sets of images are compared by; None where no network's weights are at hand."""
        try:
            return load_features("auto", self.device)
        except MetricUnavailable:
            return None

    def weights(self, cell: Cell) -> dict[str, str]:
        """Hashes of the models that the cell uses; ConfigError when one is missing."""
        prior = None if cell.method.baseline in ("measurement", *TRAINED) else self.prior(cell)
        models = {"prior": prior, "severity_encoder": self.encoder(cell), "baseline": self.trained(cell)}
        used = {name: model.sha256 for name, model in models.items() if model is not None}
        return used | {"lpips": str(self.lpips is not None)}

    def check(self, cell: Cell) -> None:
        """ConfigError if the cell could not be computed, as far as can be told without computing."""
        task, method, start = cell.task, cell.method, cell.method.start
        degradation = degradation_of(cell)
        _require(task.severity is None or 0 <= task.severity <= 1, f"severity is {task.severity}; give 0 … 1")
        unknown = sorted(set(task.believed_times) - set(degradation.parameter_names))
        _require(not unknown, f"believed_times: {', '.join(unknown)} is no parameter of {degradation.name}")
        if method.solver is None:
            known = ", ".join(sorted(BASELINES))
            _require(method.baseline in BASELINES, f"baseline {method.baseline!r} is not known; known: {known}")
            other = sorted(set(method.settings) - ({"weights"} if method.baseline in TRAINED else set()))
            _require(not other, f"baseline {method.baseline}: unknown setting {', '.join(other)}")
        else:
            solver = make_solver(method.solver.name, method.solver.settings)
            _require(
                degradation.linear or not solver.needs_adjoint,
                f"solver {method.solver.name} needs an adjoint, and {degradation.name} is nonlinear and has none",
            )
            _require(0 <= method.solver.eta <= 1, f"solver.eta is {method.solver.eta}; give a number from 0 to 1")
            schedule = method.solver.chain(self.prior(cell).schedule)
            start_of(start, torch.ones(1), schedule)
            _require(start.step is None or start.step >= 0, f"start.step is {start.step}; give a number ≥ 0")
            _require(start.sigma in SIGMAS, f"start.sigma {start.sigma!r} is not known; known: {', '.join(SIGMAS)}")
        encoder = self.encoder(cell)
        for what, model in (("severity encoder", encoder), (f"baseline {method.baseline}", self.trained(cell))):
            _require(
                model is None or model.degradation == degradation.name,
                f"the {what} was trained on {model and model.degradation}, and the task is {degradation.name}; "
                "name one of that family",
            )
        if encoder is None:
            return
        prior = self.prior(cell)
        pairs = [(getattr(encoder, f"latent_{name}"), getattr(prior, name)) for name in ("scale", "shift")]
        _require(
            all(one.shape == other.shape and one.allclose(other) for one, other in pairs),
            f"the severity encoder was trained for another prior than {prior.name}: their latents are scaled "
            "differently; name the one that belongs to it",
        )

    def compute(self, cell: Cell, photos: Photos, calibration: Photos | None = None) -> Result:
        """The cell's result on its photos.

        Args:
            calibration: clean photos that nothing is reported on, for a σ̂ that has to be calibrated.
        """
        began = time.perf_counter()
        torch.set_num_threads(self.setting.threads)
        prior, task, method = self.prior(cell), cell.task, cell.method
        measured = self._measure(cell, photos.first(cell.images))
        truth = measured.parameters
        if method.solver is None:
            watch = stopwatch(self.device)
            with torch.no_grad():
                model = self.trained(cell)
                images = restore(measured, model) if model else ONE_PASS[method.baseline or ""](measured, prior)
            restored = Restored.in_one_pass(images, stopwatch(self.device) - watch)
        else:
            aside = None
            if cell.calibration and calibration is not None:
                aside = self._measure(cell, calibration.first(cell.calibration))
            measured = believing(with_sigma(method.start.sigma, measured, prior, aside), task.believed_times)
            schedule = method.solver.chain(prior.schedule)
            start = start_of(method.start, measured.sigma_hat_N, schedule)
            solver = make_solver(method.solver.name, method.solver.settings)
            restored = run_cell(measured, prior, start, solver, schedule, self.setting.slots, method.solver.eta)
        rows = self._rows(cell, measured, truth, restored)
        summary = self._summary(cell, rows)
        if len(rows) >= ENOUGH and self.features is not None:
            summary["distances"] = self.features.compare(
                self.features(restored.x_NCHW.to(self.device)), self.features(measured.x_NCHW)
            )
        summary["wall_seconds"] = round(time.perf_counter() - began, 3)
        return Result(cell, rows, _pictures(cell, measured, restored), summary)

    def _measure(self, cell: Cell, photos: Photos) -> Measurements:
        low, high = cell.task.degradation.noise_range
        return measure_photos(
            photos.x_NCHW,
            photos.keys,
            self.prior(cell),
            self.encoder(cell),
            degradation_of(cell),
            (low, high),
            self.setting.seed,
            cell.task.severity,
        )

    def _rows(self, cell: Cell, measured: Measurements, truth: Mapping[str, Tensor], restored: Restored) -> pa.Table:
        n = len(measured.keys)
        names = measured.degradation.parameter_names
        scores = score_in_batches(restored.x_NCHW, measured.x_NCHW, self.lpips, self.device)
        columns: dict[str, list[Any]] = {
            "cell": [cell.id] * n,
            "key": measured.keys,
            "parameters": [json.dumps({name: truth[name][i].item() for name in names}) for i in range(n)],
            "noise_std": measured.noise_std_N.tolist(),
            "sigma_hat": _numbers(measured.sigma_hat_N, n),
            "sigma_true": _numbers(measured.sigma_true_N, n),
            "start_step": restored.nfe,
            "nfe": restored.nfe,
            "fallback": restored.fallback,
            "seconds": restored.seconds,
            "error": restored.error,
            **{metric: _numbers(scores.get(metric), n) for metric in ("psnr", "ssim", "lpips")},
        }
        return pa.table({name: columns[name] for name in ROWS.names}, schema=ROWS)

    def _summary(self, cell: Cell, rows: pa.Table) -> dict[str, Any]:
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
        for name in ("psnr", "ssim", "lpips", "nfe", "seconds"):
            interval = mean_interval(rows[name].to_pylist())
            found[name] = list(interval) if all(map(math.isfinite, interval)) else None
        return found | {"nfe_max": max(rows["nfe"].to_pylist()), "machine": machine(self.device, self.setting)}

    def _load_prior(self, source: str) -> LatentPrior:
        prior = load_prior(source, self.device)
        prior.bf16 = self.setting.precision == "bf16"
        return prior


def _weights(cell: Cell) -> str:
    return str(cell.method.settings.get("weights", f"bundled:{cell.task.degradation.name}"))


def degradation_of(cell: Cell) -> Degradation:
    return make_degradation(cell.task.degradation.name, cell.task.degradation.settings)


@functools.lru_cache(maxsize=1)
def workbench(setting: Setting) -> Workbench:
    """This process's workbench, kept from cell to cell."""
    return Workbench(setting)


def compute(cell: Cell, photos: Bundle, setting: Setting) -> Result | Exception:
    """One cell; whatever an operator or a network raises is the cell's own loss."""
    try:
        bench = workbench(setting)
        size = bench.prior(cell).sample_size
        return bench.compute(cell, photos[cell.task.photos, size], photos.get(("calibration", size)))
    except Exception as error:
        log.exception("%s", cell.name)
        return error


def machine(device: torch.device, setting: Setting) -> str:
    """What a table says about where its seconds come from."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, {setting.precision}, {setting.slots} slots"
    return f"{_cpu()}, {setting.threads} threads a cell, {setting.precision}, {setting.slots} slots"


def _cpu() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        return f"{names[0]} × {os.cpu_count()}"
    except (OSError, IndexError):
        return f"{platform.processor() or platform.machine()} × {os.cpu_count()}"


def _numbers(values: Tensor | None, count: int) -> list[float | None]:
    return [None] * count if values is None else values.double().tolist()


def _pictures(cell: Cell, measured: Measurements, restored: Restored) -> pa.Table:
    """The first images, or those whose σ̂ and σ̄ are farthest apart."""
    order = torch.arange(len(measured.keys))
    if cell.outliers and measured.sigma_hat_N is not None and measured.sigma_true_N is not None:
        order = (measured.sigma_hat_N / measured.sigma_true_N).log().abs().argsort(descending=True).cpu()
    rows = [
        {
            "key": measured.keys[n],
            "measurement": encode_png(measured.shown_NCHW[n]),
            "restored": encode_png(restored.x_NCHW[n]),
            "clean": encode_png(measured.x_NCHW[n]),
        }
        for n in order[: cell.pictures].tolist()
    ]
    return pa.Table.from_pylist(rows, schema=PICTURES)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
