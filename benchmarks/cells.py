"""The cells of an experiment at a scale: which task, which method, how many photos."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.experiment_file import Experiment, Method, Scale, Task, put, variations
from flashray.build import strict
from flashray.errors import ConfigError


@dataclass(frozen=True)
class Cell:
    """One square of the grid.

    Attributes:
        images: the first so many photos.
        pictures: the first so many restorations are kept; with `outliers`, those whose σ̂ is farthest from σ̄.
        identity: everything that the results depend on, names and sources left out; `identified` fills it in.
    """

    task: Task
    method: Method
    images: int
    calibration: int = 0
    pictures: int = 0
    outliers: bool = False
    identity: str = ""

    @property
    def name(self) -> str:
        return f"{self.task.name}: {self.method.name}"

    @property
    def id(self) -> str:
        """A name for files, with a hash of the definition: another definition is another cell, another name is not."""
        solver, start = self.method.solver, self.method.start.mode
        how = self.method.baseline if solver is None else f"{start}-{solver.name}"
        return f"{self.task.degradation.name}-{how}-{hashlib.sha256(self.identity.encode()).hexdigest()[:10]}"

    def identified(self, weights: Mapping[str, str], photos: Sequence[str], more: Mapping[str, Any]) -> Cell:
        """The cell with its identity.

        Args:
            weights: hashes of the models that it uses.
            photos: hashes of its photos, the calibration's included.
            more: seed, precision.
        """
        task, method = dataclasses.asdict(self.task), dataclasses.asdict(self.method)
        for name in ("name", "base", "at"):
            del task[name], method[name]
        for name in ("tasks", "prior", "severity_encoder"):
            del method[name]  # hashes stand for these sources
        del method["start"]["severity_encoder"]
        if self.method.solver is None:
            del method["solver"], method["start"], method["sigma"]
        elif self.method.start.mode == "full":
            method["start"] = {"mode": "full"}
        values = {"task": task, "method": method, "images": self.images, "weights": weights, "photos": photos}
        kept = {"pictures": self.pictures, "outliers": self.outliers}
        return dataclasses.replace(self, identity=json.dumps(values | kept | dict(more), sort_keys=True))


def expand(experiment: Experiment, scale_name: str, images: int | None = None) -> list[Cell]:
    """Every cell at this scale, task by task in the order of the file.

    Args:
        images: photos of every cell instead of the scale's.

    Raises:
        ConfigError: names what is wrong in the file.
    """
    scale = experiment.scale(scale_name)
    if images is not None:
        fewer = scale.full_images and min(scale.full_images, images)
        scale = dataclasses.replace(scale, images=images, full_images=fewer)
    tasks = [task for entry in experiment.tasks for task in _tasks(entry, scale, experiment)]
    named = {str(entry.get("name")) for entry in experiment.tasks}
    methods = [str(entry.get("name")) for entry in experiment.methods]
    _know("skip", scale.skip, named | set(methods), experiment)
    _know("pairs", [name for pair in experiment.pairs for name in pair], set(methods), experiment)
    cells = []
    for base, task in tasks:
        for entry in experiment.methods:
            if entry.get("name") in scale.skip:
                continue
            _know("tasks", [*(entry.get("tasks") or ()), *entry.get("per_task", {})], named, experiment)
            if entry.get("tasks") and base not in entry["tasks"]:
                continue
            for method in _methods(entry, base, scale, experiment):
                cells.append(_cell(task, method, scale, experiment))
    if not cells:
        raise ConfigError(f"experiment {experiment.name}: no cell is left at scale {scale_name}")
    return cells


def _tasks(entry: dict[str, Any], scale: Scale, experiment: Experiment) -> list[tuple[str, Task]]:
    """(name in the file, task) of every variation of an entry."""
    where = f"{experiment.name}, task {entry.get('name')!r}"
    if entry.get("name") in scale.skip:
        return []
    varied = variations(entry, scale.most_values, where)
    return [(str(entry.get("name")), strict(Task, values, where)) for values in varied]


def _methods(entry: dict[str, Any], task: str, scale: Scale, experiment: Experiment) -> list[Method]:
    """Every variation of an entry as it is on this task."""
    where = f"{experiment.name}, method {entry.get('name')!r}"
    values = copy.deepcopy(entry)
    for path, value in values.pop("per_task", {}).get(task, {}).items():
        put(values, path, value, where)
    return [strict(Method, varied, where) for varied in variations(values, scale.most_values, where)]


def _cell(task: Task, method: Method, scale: Scale, experiment: Experiment) -> Cell:
    images, solver = scale.images, method.solver
    if solver is not None:
        full = method.start.mode == "full"
        limits = [scale.steps, scale.full_steps if full else None]
        steps = min([solver.steps, *(limit for limit in limits if limit)])
        method = dataclasses.replace(method, solver=dataclasses.replace(solver, steps=steps))
        images = min(images, scale.full_images or images) if full else images
    calibrated = solver is not None and method.start.mode != "full" and method.sigma not in ("encoder", "true")
    return Cell(
        task=task,
        method=method,
        images=images,
        calibration=scale.calibration if calibrated else 0,
        pictures=experiment.pictures,
        outliers=experiment.kind == "severity",
    )


def _know(what: str, names: Sequence[str], known: set[str], experiment: Experiment) -> None:
    unknown = sorted(set(names) - known)
    if unknown:
        raise ConfigError(f"experiment {experiment.name}, {what}: {', '.join(unknown)} is not in the file")
