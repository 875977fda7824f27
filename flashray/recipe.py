"""A recipe is the science of a run: degradation, start, solver, fusion, prior and seed."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from flashray.build import mapping, nearest, noise_range, strict
from flashray.errors import ConfigError
from flashray.severity.start import Start
from flashray.sources import check_source
from flashray.yaml_text import read_yaml

WITH_SETTINGS = ("degradation", "solver")  # sections whose settings belong to their name
_SHIPPED = Path(__file__).parent / "recipes"

if TYPE_CHECKING:
    from flashray.degradations import Degradation
    from flashray.schedule import NoiseSchedule
    from flashray.solvers import Solver


@dataclass(frozen=True)
class DegradationConfig:
    """The degradation that the measurements went through.

    Args:
        name: the family, such as gaussian_blur.
        settings: the family's own settings, such as the range of its severity; preset names reference settings.
        noise_std: standard deviation of the measurement's noise on the [0, 1] scale; [low, high] draws it per image.

    Raises:
        ConfigError: if noise_std is neither a number ≥ 0 nor such a range.
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

    def make(self) -> Degradation:
        """The family with its settings; ConfigError names what is wrong with them."""
        from flashray.degradations import make_degradation

        return make_degradation(self.name, self.settings)


@dataclass(frozen=True)
class SolverConfig:
    """The update rule and its chain.

    Args:
        name: the solver, such as latent_dps.
        steps: length of the chain; fewer steps than the prior's schedule has respace it.
        eta: DDIM's η of the reverse steps; 1 is ancestral sampling.
        set_alpha_to_one: whether the last update of a respaced chain ends at the data (ᾱ = 1) or, as in LDM's and
            ReSample's samplers, at ᾱ_0.
        spacing: of a respaced chain of N: the last step of leading is at timestep 1, where there is hardly any noise;
            that of trailing is at N/steps - 1, so that a start of one evaluation has noise to remove.
        settings: the solver's own settings, such as its step size.
    """

    name: str = "latent_dps"
    steps: int = 1000
    eta: float = 1.0
    set_alpha_to_one: bool = True
    spacing: Literal["leading", "trailing"] = "leading"
    settings: dict[str, Any] = field(default_factory=dict)

    def chain(self, schedule: NoiseSchedule) -> NoiseSchedule:
        """The prior's schedule respaced for this solver; ConfigError where it has fewer steps."""
        return schedule.respaced(self.steps, self.set_alpha_to_one, self.spacing)

    @property
    def guided(self) -> bool:
        """Whether the update rule looks at the measurement."""
        return self.name != "unguided"

    def make(self) -> Solver:
        """The update rule with its settings; ConfigError names what is wrong with them."""
        from flashray.solvers import make_solver

        return make_solver(self.name, self.settings)


@dataclass(frozen=True)
class FusionConfig:
    """The last word in pixels, after decoding.

    Args:
        name: none is D(z) alone. operator weighs D(z) against y by the known operator and the predicted errors. learned
            takes the severity encoder's weights and residual, for an unknown operator.
        radius: of the neighbourhood that decides, in latent positions to each side, where fusion is learned.
        threshold: nothing of D(z) is taken where the mean weight nearby is at most this; from twice as much on D(z)
            counts fully.
        grain: in grey levels. A residual that sharpens is added from this root mean square on, in full from twice as
            much on; one that takes noise away, where it changes most of the photo by a tenth of this. It is less where
            JPEG's blocks show; 0 adds all of the residual.
        decoder_std: of x - D(E(x)), on the [0, 1] scale, for operator.
        gain: change of D(z) on the [0, 1] scale for a unit of z, for operator.

    Raises:
        ConfigError: for an unknown name or a number outside its range.
    """

    name: Literal["none", "operator", "learned"] = "none"
    radius: int = 16
    threshold: float = 0.35
    grain: float = 3.0
    decoder_std: float = 0.03
    gain: float = 0.15

    def __post_init__(self) -> None:
        if self.name not in ("none", "operator", "learned"):
            raise ConfigError(f"fusion.name is {self.name!r}; give none, operator or learned")
        if self.radius < 0:
            raise ConfigError(f"fusion.radius is {self.radius}; give a whole number of latent positions, 0 or more")
        if not 0 < self.threshold <= 0.5:
            raise ConfigError(f"fusion.threshold is {self.threshold}; give a number above 0, up to .5")
        if not 0 <= self.grain < math.inf:
            raise ConfigError(f"fusion.grain is {self.grain}; give a number of grey levels, 0 or more")
        if not (0 < self.decoder_std < math.inf and 0 < self.gain < math.inf):
            raise ConfigError(
                f"fusion.decoder_std and fusion.gain are {self.decoder_std} and {self.gain}; give positive numbers"
            )


@dataclass(frozen=True)
class Recipe:
    """What is done to every image, independent of the archive and the machine.

    Args:
        degradation: the forward operator and the noise.
        start: where the reverse diffusion starts.
        solver: the update rule and its chain.
        fusion: the last word in pixels.
        prior: bundled, a folder in diffusers' layout, a hub id such as hf://owner/name@revision, or a URI such as
            s3://bucket/folder.
        seed: all random numbers follow from it and the images' keys.
    """

    degradation: DegradationConfig = field(default_factory=DegradationConfig)
    start: Start = field(default_factory=Start)
    solver: SolverConfig = field(default_factory=SolverConfig)
    fusion: FusionConfig = field(default_factory=FusionConfig)
    prior: str = "bundled"
    seed: int = 0

    def check(self) -> Recipe:
        """This recipe; loads no weights.

        ConfigError when a name or a setting is wrong, or the solver or the fusion does not fit the rest.
        """
        degradation, solver = self.degradation.make(), self.solver.make()
        if self.solver.steps < 1:
            raise ConfigError(f"solver.steps is {self.solver.steps}; give at least 1")
        if not 0 <= self.solver.eta <= 1:
            raise ConfigError(f"solver.eta is {self.solver.eta}; give a number from 0 to 1")
        if self.solver.spacing not in ("leading", "trailing"):
            raise ConfigError(f"solver.spacing is {self.solver.spacing!r}; give leading or trailing")
        if solver.needs_adjoint and not degradation.linear:
            raise ConfigError(
                f"solver {self.solver.name} needs an adjoint, and {degradation.name} is nonlinear and has none; "
                "use a solver that needs none, such as latent_dps"
            )
        if degradation.unknown and (solver.name != "unguided" or self.fusion.name == "operator"):
            raise ConfigError(
                f"degradation {degradation.name} stands for unknown damage, and solver {solver.name} with fusion "
                f"{self.fusion.name} needs an operator; use solver unguided with fusion learned or none"
            )
        whole = self.start.mode == "full" or (self.start.step or 0) >= self.solver.steps
        if not self.solver.guided and (whole or self.start.formula == "paper"):
            what = f"start.mode {self.start.mode}" if whole else f"start.formula {self.start.formula}"
            raise ConfigError(
                f"solver {self.solver.name} with {what} could end at a random image, because nothing tells it of the "
                "measurement; use start.mode flash with start.formula schedule, or a recipe with a known degradation"
            )
        if self.fusion.name == "learned" and not self.start.uses_encoder:
            raise ConfigError(
                f"fusion learned takes the severity encoder's weights, and start.mode {self.start.mode} uses no "
                "encoder; use fusion none, or start.mode flash"
            )
        if self.start.mode == "fixed" and self.start.step is None:
            raise ConfigError("start.mode is fixed, and start.step is missing; give the step")
        idle = self.start.mode == "full" or (self.start.mode == "fixed" and self.start.formula != "paper")
        if idle and self.start.strength != 1:
            raise ConfigError(
                f"start.strength is {self.start.strength:g}, and would change nothing in start.mode {self.start.mode}; "
                "leave strength out, or use start.mode flash"
            )
        check_source(self.prior, "prior")
        check_source(self.start.severity_encoder, "severity encoder")
        return self

    def with_absolute_folders(self) -> Recipe:
        """Model folders of this machine as absolute paths; other sources as they are."""

        def absolute(source: str) -> str:
            return os.path.abspath(source) if os.path.isdir(source) else source

        settings = self.degradation.settings
        if "weights" in settings:
            settings = settings | {"weights": os.path.abspath(settings["weights"])}
        return dataclasses.replace(
            self,
            prior=absolute(self.prior),
            start=dataclasses.replace(self.start, severity_encoder=absolute(self.start.severity_encoder)),
            degradation=dataclasses.replace(self.degradation, settings=settings),
        )


def recipe_names() -> list[str]:
    """The names of the recipes inside the package."""
    return sorted(path.stem for path in _SHIPPED.glob("*.yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """The values of a recipe, one of `recipe_names` or a YAML file, checked for their names and types only.

    ConfigError when there is no such recipe, with the nearest names, and when the file is not a recipe.
    """
    if name.endswith((".yaml", ".yml")) or os.sep in name:
        path = Path(os.path.expanduser(name))
        if not path.is_file():
            raise ConfigError(f"recipe {name}: there is no such file; shipped recipes: {', '.join(recipe_names())}")
        data = path.read_bytes()
    else:
        if name not in recipe_names():
            raise ConfigError(
                f"recipe {name!r} is not known{nearest(name, recipe_names())}; "
                f"shipped recipes: {', '.join(recipe_names())}; or give the path of a YAML file"
            )
        data = (_SHIPPED / f"{name}.yaml").read_bytes()
    values = dict(mapping(read_yaml(data, f"recipe {name}"), f"recipe {name}"))
    strict(Recipe, values, f"recipe {name}")
    return values


def load_recipe(name: str | os.PathLike[str], changes: Mapping[str, Any] | None = None) -> Recipe:
    """A checked recipe; ConfigError when the file, a key or a value is wrong.

    `name` is one of `recipe_names`, or the path of a YAML file. `changes` replace the file's values, such as
    {"solver": {"steps": 50}} or {"solver.steps": 50}.
    """
    if not isinstance(name, str | os.PathLike):
        raise ConfigError(f"a recipe is a shipped one's name, the path of a YAML file or a Recipe, not {name!r}")
    name, changes = os.fspath(name), changes or {}
    names = {section: _name_in(changes, section) for section in WITH_SETTINGS}
    values = without_settings_of_others(read_recipe(name), names)
    for key, value in changes.items():
        _put(values, key.split("."), value)
    return strict(Recipe, values, f"recipe {name}").check().with_absolute_folders()


def without_settings_of_others(values: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe's values without the settings of a solver or degradation that is replaced by one of another name.

    `names` maps the section solver or degradation to its new name, None where it stays.
    """
    kept = dict(values)
    for section, name in names.items():
        inner = kept.get(section)
        if name is not None and isinstance(inner, Mapping) and inner.get("name") != name:
            kept[section] = {key: value for key, value in inner.items() if key != "settings"}
    return kept


def _name_in(changes: Mapping[str, Any], section: str) -> Any:
    """The new name of a section; None where the changes have none."""
    inner = changes.get(section)
    return changes.get(f"{section}.name", inner.get("name") if isinstance(inner, Mapping) else None)


def _put(values: dict[str, Any], path: list[str], value: Any) -> None:
    """values[a][b] = value of the path [a, b]; a mapping is merged into what is there."""
    first, *rest = path
    if rest:
        inner = values.get(first)
        values[first] = dict(inner) if isinstance(inner, Mapping) else {}
        _put(values[first], rest, value)
    elif isinstance(value, Mapping) and isinstance(values.get(first), Mapping):
        for name, one in value.items():
            _put(values, [first, str(name)], one)
    else:
        values[first] = value
