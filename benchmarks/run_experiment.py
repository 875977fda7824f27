"""One run of an experiment: check everything, compute the cells that are missing, report."""

from __future__ import annotations

import dataclasses
import logging
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from benchmarks.cell_models import CellModels, Setting
from benchmarks.cells import Cell, expand
from benchmarks.compute_cell import compute
from benchmarks.experiment_file import Experiment, load_experiment
from benchmarks.experiment_photos import Bundle, archive_photos, calibration_photos, sample_photos
from benchmarks.pages.experiment_report import write_report
from benchmarks.results import Result, Store
from flashray import storage
from flashray.device import chosen_device
from flashray.errors import ConfigError
from flashray.pipeline.lease import held
from flashray.storage.working_folder import refuse_relative
from flashray.tracking import Tracker
from flashray.tracking.tracking_config import TrackingConfig
from flashray.training.train_config import absolute

log = logging.getLogger(__name__)
EXPERIMENTS = Path(__file__).resolve().parent / "experiments"


@dataclass(frozen=True)
class ExperimentConfig:
    """A run of an experiment.

    Args:
        experiment: the name of a file in benchmarks/experiments, or the path of a YAML file.
        photos: folder of clean photos, every `stride`-th of the sorted ones from `offset` on.
        output: folder or s3:// prefix of the results.
        scale: smoke (does it work), small (two CPU cores, about an hour) or paper (a GPU); an experiment's file says
            what each of them runs.
        images: photos of every cell instead of the scale's.
        prior: bundled, a folder in diffusers' layout, or a hub id.
        severity_encoders: family of degradations → bundled:NAME or a folder; `bundled:<family>` where none is named.
        models: folder that `models:NAME` in an experiment's file stands for.
        launcher: ray computes cells as Ray tasks, local one after another in this process.
        workers: cells at once; default one a GPU, or the cores over the threads.
        threads: CPU threads of a cell.
        slots: images in flight of a cell.
        device: auto is this machine's GPU, if it has one; name cuda where only the cluster has.
        precision: bf16 runs the prior's networks under autocast.
        skip_missing: leave out the cells whose models are missing, instead of refusing to start.
        report_only: make the report of the cells that are there, and compute nothing.
        tracking: MLflow; a run for the experiment and one below it for every cell.
    """

    experiment: str
    photos: str
    output: str
    scale: Literal["smoke", "small", "paper"] = "small"
    offset: int = 0
    stride: int = 1
    images: int | None = None
    prior: str = "bundled"
    severity_encoders: dict[str, str] = field(default_factory=dict)
    models: str = "models"
    seed: int = 0
    launcher: Literal["ray", "local"] = "ray"
    workers: int | None = None
    threads: int = 1
    slots: int = 8
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["float32", "bf16"] = "float32"
    skip_missing: bool = False
    report_only: bool = False
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


def run_experiment(config: ExperimentConfig, folder: Path = EXPERIMENTS) -> int:
    """Run the experiment, or what is missing of it.

    Args:
        folder: where experiments are looked up by their names.

    Returns:
        0, or 1 when cells failed: the same command takes them up again.

    Raises:
        ConfigError: before any work, naming everything that is wrong with what was asked.
        FlashrayError: when another driver is at work on the same output.
    """
    plan = prepare(config, folder)
    store = Store(storage.normalise(config.output))
    record = _open(store, config, plan.experiment)
    missing = list({cell.id: cell for cell in plan.cells if not store.done(cell)}.values())
    if config.report_only:
        if len(missing) == len(plan.cells):
            raise ConfigError(f"output {store.output}: none of its cells is there yet; leave out --report-only")
        missing = []
    print(
        f"{plan.experiment.name} at scale {config.scale}: {len(plan.cells)} cells, {len(missing)} to compute",
        flush=True,
    )
    with held(store.output), _tracked(plan, config, store, record) as tracker:
        failed = _compute(missing, plan, config, store, tracker)
        results = [store.result(cell) for cell in plan.cells if store.done(cell)]
        for result in results:  # those of earlier starts too
            _track(tracker, result)
        if results:
            for name in write_report(plan.experiment, results, store, record):
                tracker.file(name)
            print(f"report: {store.uri('report.md')}", flush=True)
        for cell, reason in failed:
            log.error("%s failed: %s", cell.name, reason)
    return 1 if failed else 0


@dataclass(frozen=True)
class Plan:
    """What is to be computed, checked."""

    experiment: Experiment
    cells: list[Cell]
    photos: Bundle
    setting: Setting


def prepare(config: ExperimentConfig, folder: Path) -> Plan:
    """Everything that an experiment needs, checked; starts nothing, writes nothing. ConfigError as `run_experiment`."""
    refuse_relative(photos=config.photos, output=config.output)
    for name in ("images", "workers", "threads", "slots", "stride"):
        value = getattr(config, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} is {value}; give at least 1")
    experiment, setting = load_experiment(config.experiment, folder), _setting(config)
    models = CellModels(dataclasses.replace(setting, device="cpu"))  # the driver may lack what the workers have
    cells = _checked(expand(experiment, config.scale, config.images), models, config.skip_missing)
    photos = _photos(config, cells, models)
    if models.lpips is None:
        print(f"no LPIPS: {models.lpips_unavailable}", flush=True)
    return Plan(experiment, [_identified(cell, photos, models, config) for cell in cells], photos, setting)


@contextmanager
def _tracked(plan: Plan, config: ExperimentConfig, store: Store, record: dict[str, Any]) -> Iterator[Tracker]:
    """A tracker that learns how the run ended, and stands in run.json."""
    name = plan.experiment.name
    tracker = Tracker(config.tracking, store.output)
    tracker.start(
        name=f"{name} {config.scale}",
        params={key: value for key, value in _plain(config).items() if key not in ("tracking", "output")},
        tags={"flashray.experiment": name, "flashray.scale": config.scale, "flashray.output": store.output},
        config_yaml=plan.experiment.text,
    )
    try:
        with tracker.told_the_end():
            yield tracker
    finally:
        if tracker.record is not None:
            store.write_json(record | {"mlflow": tracker.record}, "run.json")


Launcher = Callable[[Sequence[Cell], Bundle, Setting, int | None], Iterator[tuple[Cell, Result | Exception]]]


def compute_here(
    cells: Sequence[Cell], photos: Bundle, setting: Setting, workers: int | None
) -> Iterator[tuple[Cell, Result | Exception]]:
    """Each cell with its result, or with what went wrong, one after another in this process."""
    for cell in cells:
        yield cell, compute(cell, photos, setting)


def _compute(
    cells: Sequence[Cell], plan: Plan, config: ExperimentConfig, store: Store, tracker: Tracker
) -> list[tuple[Cell, Exception]]:
    """Compute, store and track these cells; those that failed, and why."""
    launcher: Launcher = compute_here
    if config.launcher == "ray" and cells:
        from benchmarks.ray_backend import compute_on_ray

        launcher = compute_on_ray
    began, failed = time.monotonic(), []
    for n, (cell, result) in enumerate(launcher(cells, plan.photos, plan.setting, config.workers), start=1):
        seconds = time.monotonic() - began
        if isinstance(result, Exception):
            print(f"{n}/{len(cells)}  {cell.name}: failed  ({seconds:.0f} s)", flush=True)
            failed.append((cell, result))
            continue
        store.keep(result)
        _track(tracker, result)
        figures = [f"{name} {value[0]:.4g}" for name, value in _means(result).items()]
        print(f"{n}/{len(cells)}  {cell.name}: {'  '.join(figures)}  ({seconds:.0f} s)", flush=True)
    return failed


def _checked(cells: Sequence[Cell], models: CellModels, skip_missing: bool) -> list[Cell]:
    """The cells that can be computed; ConfigError names all that is wrong."""
    wrong: dict[str, list[str]] = {}
    missing: dict[str, list[str]] = {}
    sound = []
    for cell in cells:
        try:
            models.weights(cell)
        except ConfigError as error:
            missing.setdefault(str(error), []).append(cell.name)
            continue
        try:
            models.check(cell)
            sound.append(cell)
        except ConfigError as error:
            wrong.setdefault(str(error), []).append(cell.name)
    lines = [
        f"{names[0]}{f' and {len(names) - 1} more' if names[1:] else ''}: {message}"
        for message, names in (missing | wrong).items()
    ]
    if wrong or not sound or (missing and not skip_missing):
        hint = ["--skip-missing leaves out what needs missing models"] if missing and not wrong else []
        raise ConfigError("\n".join(lines + hint))
    for line in lines:
        print(f"left out: {line}", flush=True)
    return sound


def _photos(config: ExperimentConfig, cells: Sequence[Cell], models: CellModels) -> Bundle:
    """Every set of photos that a cell asks for."""
    found: Bundle = {}
    wanted = {(cell.task.photos, models.prior(cell).sample_size) for cell in cells}
    for source, size in sorted(wanted):
        count = max(cell.images for cell in cells)
        if source == "sample":
            found[source, size] = sample_photos(count, size)
        else:
            found[source, size] = archive_photos(config.photos, count, size, config.offset, config.stride)
            if len(found[source, size].keys) < count:
                print(f"photos: {config.photos} gives {len(found[source, size].keys)} of {count}", flush=True)
        calibration = max(cell.calibration for cell in cells)
        if calibration:
            arguments = (config.photos, count, calibration, size, config.offset, config.stride)
            found["calibration", size] = calibration_photos(*arguments)
    return found


def _identified(cell: Cell, photos: Bundle, models: CellModels, config: ExperimentConfig) -> Cell:
    size = models.prior(cell).sample_size
    cell = dataclasses.replace(cell, images=min(cell.images, len(photos[cell.task.photos, size].keys)))
    reported = photos[cell.task.photos, size].first(cell.images)
    used = [*reported.keys, *reported.hashes]
    if cell.calibration:
        used += photos["calibration", size].hashes[: cell.calibration]
    more = {"seed": config.seed, "precision": config.precision, "calibration": cell.calibration}
    return cell.identified(models.weights(cell), used, more)


def _setting(config: ExperimentConfig) -> Setting:
    return Setting(
        prior=absolute(config.prior),
        severity_encoders=tuple(sorted((family, absolute(one)) for family, one in config.severity_encoders.items())),
        models=os.path.abspath(config.models),
        seed=config.seed,
        device=chosen_device(config.device),
        precision=config.precision,
        slots=config.slots,
        threads=config.threads,
    )


def _open(store: Store, config: ExperimentConfig, experiment: Experiment) -> dict[str, Any]:
    """run.json of this output; ConfigError when it belongs to another experiment or scale."""
    old = store.read_json("run.json")
    here = {"experiment": experiment.name, "scale": config.scale}
    if old and {name: old.get(name) for name in here} != here:
        raise ConfigError(
            f"output {store.output} holds {old.get('experiment')} at scale {old.get('scale')}; choose another --output"
        )
    record = here | {"command": command(), "config": _plain(config), "mlflow": (old or {}).get("mlflow")}
    try:
        store.write_json(record, "run.json")
    except OSError as error:
        raise ConfigError(f"output {store.output} cannot be written to: {error}") from error
    return record


def command() -> str:
    """The command line, without this machine's folders."""
    words = [re.sub(r"""(?<![\w.:/])/([^/\s"',}]+/)*""", "", word) for word in sys.argv[1:]]
    return shlex.join(["python", "-m", "benchmarks", *words])


def _means(result: Result) -> dict[str, list[float]]:
    """[mean, low, high] of what the cell has."""
    names = ("psnr", "ssim", "lpips", "nfe", "seconds")
    return {name: result.summary[name] for name in names if result.summary[name]}


def _track(tracker: Tracker, result: Result) -> None:
    cell, found = result.cell, result.summary
    metrics = {name: value[0] for name, value in _means(result).items()} | found.get("distances", {})
    metrics |= {name: float(found[name]) for name in ("images", "failed", "fallbacks", "wall_seconds")}
    params = {"task": cell.task.name, "method": cell.method.name} | cell.task.at | cell.method.at
    tracker.child(cell.id, cell.name, params, metrics)


def _plain(config: ExperimentConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    uri = config.tracking.tracking_uri
    values["tracking"]["tracking_uri"] = uri and storage.redact(uri)
    return values
