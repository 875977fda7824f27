"""Configuration: frozen dataclasses, the command line that jsonargparse makes of them, the checks before any work."""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import yaml

from flashray import storage
from flashray.degradations.noise import noise_range
from flashray.errors import ConfigError
from flashray.storage.working_folder import in_submitted_job, refuse_relative
from flashray.tracking.tracking_config import TrackingConfig as TrackingConfig

if TYPE_CHECKING:  # torch is slow to import, and whoever only reads a configuration does without
    from flashray.schedule import NoiseSchedule

METRICS = ("psnr", "ssim", "lpips")
_FLAGS = ("plan_only", "retry_failed")  # may stand on the command line without a value


@dataclass(frozen=True)
class DegradationConfig:
    """The degradation that the measurements went through.

    Args:
        name: the family, such as gaussian_blur.
        settings: the family's own settings, such as the range of its severity; preset names reference settings.
        noise_std: standard deviation of the measurement's noise on the [0, 1] scale; [low, high] draws it per image.

    Raises:
        ConfigError: if noise_std is no number ≥ 0 and no such range.
    """

    name: str = "gaussian_blur"
    settings: dict[str, Any] = field(default_factory=dict)
    noise_std: float | list[float] = 0.05

    def __post_init__(self) -> None:
        _ = self.noise_range  # raises

    @property
    def noise_range(self) -> tuple[float, float]:
        """(low, high) of noise_std; equal where it is one number."""
        return noise_range(self.noise_std, "degradation.noise_std")


@dataclass(frozen=True)
class StartConfig:
    """Where the reverse diffusion of each image starts.

    Args:
        mode: flash starts at the step that the severity encoder asks for, full at pure noise.
        severity_encoder: bundled:NAME, a folder or s3:// prefix, or models:/NAME@ALIAS (or models:/NAME/VERSION) of
            MLflow's model registry; a full chain needs none.
        formula: the start latent; paper is √(1-cσ²) ẑ + √(cσ²) ε, schedule is √ᾱ ẑ + √(1-ᾱ) ε.
        c: the paper formula's noise correction.
        sigma_scale: multiplies σ̂ before anything else.
    """

    mode: Literal["flash", "full"] = "flash"
    severity_encoder: str = "bundled:gaussian_blur"
    formula: Literal["paper", "schedule"] = "schedule"
    c: float = 1.0
    sigma_scale: float = 1.0


@dataclass(frozen=True)
class SolverConfig:
    """The update rule and its chain.

    Args:
        name: the solver, such as latent_dps.
        steps: length of the (respaced) chain; the prior's own length is the whole of it.
        eta: DDIM's η of the reverse steps; 1 is ancestral sampling.
        set_alpha_to_one: whether a respaced chain's last update leads to the data (ᾱ = 1) or, as in LDM's sampler and
            ReSample's, to ᾱ_0.
        settings: the solver's own settings, such as its step size.
    """

    name: str = "latent_dps"
    steps: int = 1000
    eta: float = 1.0
    set_alpha_to_one: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    def chain(self, schedule: NoiseSchedule) -> NoiseSchedule:
        """The prior's schedule respaced for this solver; ConfigError where it has fewer steps."""
        return schedule.respaced(self.steps, self.set_alpha_to_one)


@dataclass(frozen=True)
class ReconstructConfig:
    """Everything that one run of jobs/reconstruct.py depends on.

    Args:
        archive: folder or s3:// prefix of images; an image's key is its path below it.
        output: run directory, a folder or s3:// prefix outside the archive.
        measurement: observed (the archive holds degraded images) or simulated (it holds clean ones, which the run
            degrades, each by its key, and scores against).
        manifest: CSV or Parquet with a column key, the degradation's parameters (for inpainting, or mask: the place of
            an image of the same size, white where pixels are known) and perhaps noise_std.
        references: folder or prefix of clean images with the archive's keys, to score observed measurements against.
        degradation: the forward operator and the noise.
        start: where the reverse diffusion starts.
        solver: the update rule.
        prior: bundled, a folder in diffusers' layout, or a hub id.
        seed: all randomness follows from it and the keys.
        limit: only the first so many images, in the order of their keys.
        fit: photos of another size than the prior's; resize (shorter side, then centre crop), crop, or error.
        metrics: what to compute where a reference exists, of psnr, ssim and lpips.
        slots: images that one solver actor has in flight; 0 chooses: what a GPU's memory takes, 8 on CPUs.
        severity_batch: images that the severity encoder sees at once.
        unit_images: mean number of images of a unit, the grain of dispatch, retry and resume; default by archive and
            pool.
        device: cpu, cuda, or auto (cuda where the cluster has GPUs).
        precision: bf16 runs the networks under autocast; latents, norms and the operator stay in float32. auto takes it
            where the device is made for it.
        solver_actors: default one a GPU; on CPUs one a core, or fewer of more threads where memory is short.
        severity_actors: default two a GPU; on CPUs as many as solver actors.
        autoscale_seconds: ask an autoscaling cluster for the places of solver_actors, and wait for them so long.
        budget_seconds: fit the solve pass into so much time by starting every chain milder than σ̂ asks.
        budget_gpu_hours: the same, in hours of the pool's devices (on CPUs: of its actors).
        plan_only: print the quote (images, steps, share saved, time) and stop.
        retry_failed: take up the images that failed before.
        overwrite: begin anew where the output holds a run, and delete that one first; give the output's last component,
            so that no other run is deleted by mistake.
        mlflow: tracking.
    """

    archive: str
    output: str
    measurement: Literal["observed", "simulated"] = "observed"
    manifest: str | None = None
    references: str | None = None
    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    start: StartConfig = field(default_factory=StartConfig)
    solver: SolverConfig = field(default_factory=SolverConfig)
    prior: str = "bundled"
    seed: int = 0
    limit: int | None = None
    fit: Literal["resize", "crop", "error"] = "resize"
    metrics: list[str] = field(default_factory=lambda: list(METRICS))
    slots: int = 0
    severity_batch: int = 16
    unit_images: int | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bf16"] = "auto"
    solver_actors: int | None = None
    severity_actors: int | None = None
    autoscale_seconds: float = 0
    budget_seconds: float | None = None
    budget_gpu_hours: float | None = None
    plan_only: bool = False
    retry_failed: bool = False
    overwrite: str | None = None
    mlflow: TrackingConfig = field(default_factory=TrackingConfig)


def parse_args(argv: Sequence[str] | None = None) -> ReconstructConfig:
    """The checked configuration of a command line; bad arguments print a message and exit with code 2.

    `--config recipe.yaml` holds any of the keys, later arguments override it (`--solver.settings.dc_step 2`),
    `--print_config` prints the result and exits.
    """
    import sys

    from jsonargparse import ArgumentParser

    parser = ArgumentParser(prog="reconstruct", description="Restore an archive of degraded images.")
    parser.add_argument("--config", action="config", help="a recipe: a YAML file with the keys below")
    parser.add_class_arguments(ReconstructConfig)
    try:
        values = parser.instantiate(parser.parse_args(_normalise(sys.argv[1:] if argv is None else argv)))
        config = ReconstructConfig(
            **{item.name: getattr(values, item.name) for item in dataclasses.fields(ReconstructConfig)}
        )
        return check(config)
    except ConfigError as error:
        parser.error(str(error))
        raise  # parser.error has already left


def check(config: ReconstructConfig) -> ReconstructConfig:
    """The configuration with absolute places, or a ConfigError that names what is wrong; starts nothing."""
    from flashray.degradations import make_degradation
    from flashray.severity.start import Start
    from flashray.solvers import make_solver

    for name, least in (("slots", 0), ("severity_batch", 1)):
        _require(getattr(config, name) >= least, f"{name} is {getattr(config, name)}; give at least {least}")
    for name in ("limit", "unit_images", "solver_actors", "severity_actors"):
        value = getattr(config, name)
        _require(value is None or value >= 1, f"{name} is {value}; give at least 1, or leave it out")
    budgets = {name: getattr(config, name) for name in ("budget_seconds", "budget_gpu_hours")}
    budgets = {name: value for name, value in budgets.items() if value is not None}
    _require(len(budgets) <= 1, f"{' and '.join(budgets)} are given; give one budget")
    for name, value in budgets.items():
        _require(0 < value < math.inf, f"{name} is {value}; give a positive number")
        _require(
            config.start.mode == "flash",
            f"{name} scales σ̂, and a full chain has none; take start.mode flash, or fewer solver.steps",
        )
    _require(
        not config.autoscale_seconds or (config.solver_actors is not None and config.device != "auto"),
        "autoscale_seconds asks for the nodes of solver_actors on a device; give both, --device cpu or cuda",
    )
    _require(config.mlflow.patience >= 0, f"mlflow.patience is {config.mlflow.patience}; give seconds, 0 or more")
    _require(config.solver.steps >= 1, f"solver.steps is {config.solver.steps}; give at least 1")
    _require(0 <= config.solver.eta <= 1, f"solver.eta is {config.solver.eta}; give a number from 0 to 1")
    unknown = sorted(set(config.metrics) - set(METRICS))
    _require(not unknown, f"metrics: {', '.join(unknown)} not known; known: {', '.join(METRICS)}")
    _require(
        config.references is None or config.measurement == "observed",
        "references are for observed measurements; simulated ones are scored against the archive itself",
    )

    degradation = make_degradation(config.degradation.name, config.degradation.settings)
    solver = make_solver(config.solver.name, config.solver.settings)
    _require(
        degradation.linear or not solver.needs_adjoint,
        f"solver {config.solver.name} needs an adjoint, and {config.degradation.name} is nonlinear and has none; "
        "take a solver that goes by gradients, such as latent_dps",
    )
    Start(mode=config.start.mode, formula=config.start.formula, c=config.start.c, sigma_scale=config.start.sigma_scale)
    config = _with_places(config)
    name = config.output.rpartition("/")[2]
    _require(
        config.overwrite in (None, name),
        f"overwrite is {config.overwrite!r} and does not name the output {config.output}; "
        f"to delete the run in it and begin anew, give --overwrite {name}",
    )
    return config


def to_dict(config: ReconstructConfig) -> dict[str, Any]:
    """The resolved configuration as plain values, with passwords in addresses hidden."""
    values = dataclasses.asdict(config)
    values["mlflow"]["tracking_uri"] = storage.redact(config.mlflow.tracking_uri)
    return values


def to_yaml(config: ReconstructConfig) -> str:
    """The resolved configuration as a recipe."""
    return yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True)


def _with_places(config: ReconstructConfig) -> ReconstructConfig:
    """Absolute URIs; refuses an output inside the archive, and relative paths where the working folder is a copy."""
    places = {name: getattr(config, name) for name in ("archive", "output", "manifest", "references")}
    refuse_relative(**places)
    for name, place in places.items():
        if place is None:
            continue
        _require(bool(place), f"{name} is empty; give a folder or a URI")
        places[name] = storage.normalise(place)
    archive, output = places["archive"], places["output"]
    _require(
        not storage.is_inside(output, archive),
        f"output {output} lies inside the archive {archive}: its images would be listed as new ones; "
        "choose an output outside",
    )
    _require(
        not storage.is_inside(archive, storage.join(output, "reconstructions")),
        f"archive {archive} lies inside the reconstructions of the output {output}; choose another output",
    )
    # a model folder is absolute too, unless the run's working folder travels to every node
    travels = in_submitted_job()
    models = (config.prior, config.start.severity_encoder)
    prior, encoder = (os.path.abspath(m) if os.path.isdir(m) and not travels else m for m in models)
    start = dataclasses.replace(config.start, severity_encoder=encoder)
    settings = config.degradation.settings
    if "weights" in settings and not travels:
        settings = settings | {"weights": os.path.abspath(settings["weights"])}
    degradation = dataclasses.replace(config.degradation, settings=settings)
    return dataclasses.replace(config, prior=prior, start=start, degradation=degradation, **places)


def _normalise(argv: Sequence[str]) -> list[str]:
    """Allow `--retry-failed` for `--retry_failed`, and the flags without a value."""
    result: list[str] = []
    for position, token in enumerate(argv):
        option, equals, value = token.partition("=")
        if re.match(r"--[a-z]", option):
            option = "--" + option[2:].replace("-", "_")
            following = argv[position + 1].lower() if position + 1 < len(argv) else ""
            if option[2:] in _FLAGS and not equals and following not in ("true", "false"):
                equals, value = "=", "true"
        result.append(option + equals + value)
    return result


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
