"""What an experiment is: tasks × methods, read from a YAML file in which an unknown key is an error."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from flashray.build import mapping, strict
from flashray.errors import ConfigError
from flashray.recipe import DegradationConfig, FusionConfig, SolverConfig
from flashray.severity import Start

Kind = Literal["comparison", "severity", "adaptivity", "robustness", "ablation", "pareto"]


@dataclass(frozen=True)
class Task:
    """What the photos go through.

    Attributes:
        photos: archive are those of the command line; sample are crops of photos from inside other packages, which no
            model here was trained on.
        severity: all photos at this severity of the family's range, 0 … 1; by default each draws its own.
        believed_times: the solver takes these parameters of the operator to be so many times what they are.
        base, at: the name before `vary`, and the values that `vary` gave this one; `vary` fills them in.
    """

    name: str
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    photos: Literal["archive", "sample"] = "archive"
    severity: float | None = None
    believed_times: dict[str, float] = field(default_factory=dict)
    base: str = ""
    at: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Method:
    """How an image is restored: a solver from a start, or a baseline in one pass.

    Attributes:
        baseline: one of `benchmarks.one_pass.BASELINES`, with its `settings`.
        start: where the reverse diffusion starts. A fixed start without a step takes the mean step, rounded up, of a
            flash start with the same settings on these images: as many evaluations, spent on every image alike.
        fusion: the last word in pixels; none by default, so that solvers are compared by what they decode.
        sigma: where σ̂ comes from: the severity encoder, the true error, or a cheap severity calibrated on photos that
            are not reported (`benchmarks.sigma_sources.SIGMAS`).
        prior: another prior than the command line's.
        severity_encoder: another one than the command line's for the task's family.
        tasks: only these; default all.
        base, at: as of a task.
    """

    name: str
    baseline: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    solver: SolverConfig | None = None
    start: Start = field(default_factory=Start)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    sigma: str = "encoder"
    prior: str | None = None
    severity_encoder: str | None = None
    tasks: list[str] | None = None
    base: str = ""
    at: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.baseline is None) == (self.solver is None):
            raise ConfigError(f"method {self.name!r}: give either a solver or a baseline")

        if self.start.severity_encoder != Start().severity_encoder:
            raise ConfigError(f"method {self.name!r}: severity_encoder stands beside start, not in it")

    @property
    def uses_encoder(self) -> bool:
        """Whether the severity encoder is asked."""
        return self.baseline == "autoencoder" if self.solver is None else self.start.uses_encoder


@dataclass(frozen=True)
class Scale:
    """How much of an experiment is run.

    Attributes:
        images: photos of every cell.
        full_images, full_steps: what full chains get instead: fewer photos, and a respaced chain.
        steps: chains longer than this are respaced to it.
        most_values: only so many values of each `vary` list, evenly chosen.
        skip: tasks and methods that are left out, by name.
        calibration: photos, none of them reported, that a cheap σ̂ is calibrated on.
    """

    images: int
    full_images: int | None = None
    full_steps: int | None = None
    steps: int | None = None
    most_values: int | None = None
    skip: list[str] = field(default_factory=list)
    calibration: int = 32


@dataclass(frozen=True)
class Experiment:
    """A grid as its file declares it.

    Attributes:
        kind: which figures and tables the report makes of it.
        pairs: [better, worse] methods whose difference the report tests on the images that both restored.
        pictures: images of each cell that are kept for the report.
        tasks, methods: as in the file, before `vary` and `per_task` are applied.
        text: the file.
    """

    name: str
    kind: Kind
    title: str
    tasks: list[dict[str, Any]]
    methods: list[dict[str, Any]]
    scales: dict[str, Scale]
    pairs: list[list[str]] = field(default_factory=list)
    pictures: int = 6
    text: str = ""

    def scale(self, name: str) -> Scale:
        if name not in self.scales:
            raise ConfigError(f"experiment {self.name} has no scale {name}; it has {', '.join(self.scales)}")
        return self.scales[name]


def load_experiment(name: str, folder: Path) -> Experiment:
    """The experiment of a YAML file, or of the file with this name in `folder`.

    Raises:
        ConfigError: where there is none (those of the folder are listed), or a key is missing or unknown.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else folder / f"{name.replace('-', '_')}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in folder.glob("*.yaml")))
        raise ConfigError(f"experiment {name}: there is no such file; known are {known}, or name a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"experiment {path}: not a YAML file: {error}") from error
    values = {key: value for key, value in mapping(values, path.name).items() if not key.startswith("_")}
    return strict(Experiment, {"name": path.stem} | values | {"text": text}, path.name)


def variations(values: Mapping[str, Any], at_most: int | None, where: str) -> Iterator[dict[str, Any]]:
    """The entry with every combination of its `vary` lists, named by them; itself where it has none.

    `vary: {solver.settings.dc_step: [1, 2]}` gives two entries, with `at: {dc_step: 1}` and `at: {dc_step: 2}`.
    """
    entry = dict(values)
    lists = mapping(entry.pop("vary", {}), f"{where}, vary")
    for path, options in lists.items():
        if not isinstance(options, list) or not options:
            raise ConfigError(f"{where}, vary: {path} wants a list of values, not {options!r}")
    chosen = [evenly(options, at_most) for options in lists.values()]
    for combination in itertools.product(*chosen):
        varied = copy.deepcopy(entry) | {"base": entry.get("name", "")}
        for path, value in zip(lists, combination, strict=True):
            put(varied, path, value, where)
        at = {_axis(path): value for path, value in zip(lists, combination, strict=True)}
        if at:
            varied["at"] = at
            varied["name"] = ", ".join([varied["base"], *(f"{name} {brief(value)}" for name, value in at.items())])
        yield varied


def brief(value: Any) -> str:
    """A setting's value in a few characters; a range of one number is that number."""
    if isinstance(value, list | tuple):
        return "–".join(dict.fromkeys(brief(one) for one in value))
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def put(values: dict[str, Any], path: str, value: Any, where: str) -> None:
    """values[a][b] = value of the path a.b, with mappings made where there are none."""
    *parents, last = path.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: {path} goes through {name}, which is no mapping")
    values[last] = value


def evenly(options: list[Any], at_most: int | None) -> list[Any]:
    """At most so many of them, evenly chosen from the first to the last."""
    if at_most is None or len(options) <= at_most:
        return options
    if at_most == 1:
        return options[:1]
    return [options[round(i * (len(options) - 1) / (at_most - 1))] for i in range(at_most)]


def _axis(path: str) -> str:
    """How a varied setting is called: by the last part of its path."""
    parent, _, name = path.rpartition(".")
    return f"believed {name}" if parent == "believed_times" else name
