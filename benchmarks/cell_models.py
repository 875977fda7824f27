"""The models of one process, and the restorer that they make of a cell."""

from __future__ import annotations

import dataclasses
import functools
import os
from dataclasses import dataclass

import torch

from benchmarks.cells import Cell
from benchmarks.distances.features import Features, load_features
from benchmarks.one_pass import BASELINES, SWINIR
from benchmarks.sigma_sources import SIGMAS
from benchmarks.swinir import SwinIR, load_swinir
from flashray.errors import ConfigError
from flashray.metrics import LPIPS, MetricUnavailable, load_lpips
from flashray.prior import LatentPrior, load_prior
from flashray.recipe import Recipe, SolverConfig
from flashray.restorer import Restorer
from flashray.severity import SeverityEncoder, Start, load_severity_encoder


@dataclass(frozen=True)
class Setting:
    """With what cells are computed, and on what; travels to every worker.

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

    def source(self, name: str) -> str:
        """A model's source, `models:NAME` resolved to a folder."""
        inside = name.removeprefix("models:")
        return name if inside == name else os.path.join(self.models, inside)


class CellModels:
    """The models of one process, each loaded when it is first asked for."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.device = setting, torch.device(setting.device)
        self._prior = functools.cache(self._load_prior)
        self._encoder = functools.cache(lambda source: load_severity_encoder(source, self.device))
        self._swinir = functools.cache(lambda source: load_swinir(source, self.device))

    def prior(self, cell: Cell) -> LatentPrior:
        return self._prior(self.setting.source(cell.method.prior or self.setting.prior))

    def encoder(self, cell: Cell) -> SeverityEncoder | None:
        """The severity encoder that the cell asks; None if it asks none."""
        return self._encoder(self._encoder_source(cell)) if cell.method.uses_encoder else None

    def swinir(self, cell: Cell) -> SwinIR | None:
        """The SwinIR of a cell with that baseline."""
        if cell.method.baseline != SWINIR:
            return None
        weights = cell.method.settings.get("weights", f"bundled:{cell.task.degradation.name}")
        return self._swinir(self.setting.source(str(weights)))

    def restorer(self, cell: Cell, step: int | None = None) -> Restorer:
        """What measures, estimates and solves the cell's images.

        Args:
            step: the start step of a fixed start that names none; without it the restorer starts as flash does.
        """
        encoder = self.encoder(cell)
        arguments = (self.prior(cell), encoder, "simulated", "resize", self.setting.slots)
        return Restorer(self._recipe(cell, step), *arguments)  # type: ignore[arg-type]

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
        prior = None if cell.method.baseline in ("measurement", SWINIR) else self.prior(cell)
        models = {"prior": prior, "severity_encoder": self.encoder(cell), "baseline": self.swinir(cell)}
        used = {name: model.sha256 for name, model in models.items() if model is not None}
        return used | {"lpips": str(self.lpips is not None)}

    def check(self, cell: Cell) -> None:
        """ConfigError if the cell could not be computed, as far as can be told without computing."""
        task, method = cell.task, cell.method
        if method.solver is None:
            known = ", ".join(sorted(BASELINES))
            _require(method.baseline in BASELINES, f"baseline {method.baseline!r} is not known; known: {known}")
            other = sorted(set(method.settings) - ({"weights"} if method.baseline == SWINIR else set()))
            _require(not other, f"baseline {method.baseline}: unknown setting {', '.join(other)}")
        _require(method.sigma in SIGMAS, f"sigma {method.sigma!r} is not known; known: {', '.join(SIGMAS)}")
        _require(task.severity is None or 0 <= task.severity <= 1, f"severity is {task.severity}; give 0 … 1")
        degradation = task.degradation.make()
        unknown = sorted(set(task.believed_times) - set(degradation.parameter_names))
        _require(not unknown, f"believed_times: {', '.join(unknown)} is no parameter of {degradation.name}")
        encoder = self.encoder(cell)
        for what, model in (("severity encoder", encoder), (f"baseline {method.baseline}", self.swinir(cell))):
            _require(
                model is None or model.degradation == degradation.name,
                f"the {what} was trained on {model and model.degradation}, and the task is {degradation.name}; "
                "name one of that family",
            )
        self._recipe(cell).check()
        self.restorer(cell)

    def _recipe(self, cell: Cell, step: int | None = None) -> Recipe:
        method = cell.method
        if method.solver is None:  # nothing is solved, and the whole chain fits every prior
            start = Start() if method.uses_encoder else Start(mode="full")
            solver = SolverConfig(steps=len(self.prior(cell).schedule))
        else:
            start, solver = method.start, method.solver
        if start.mode == "fixed" and start.step is None:
            start = dataclasses.replace(start, mode="flash" if step is None else "fixed", step=step)
        if start.uses_encoder:
            start = dataclasses.replace(start, severity_encoder=self._encoder_source(cell))
        prior = self.setting.source(method.prior or self.setting.prior)
        return Recipe(cell.task.degradation, start, solver, method.fusion, prior=prior, seed=self.setting.seed)

    def _encoder_source(self, cell: Cell) -> str:
        family = cell.task.degradation.name
        named = dict(self.setting.severity_encoders).get(family, f"bundled:{family}")
        return self.setting.source(cell.method.severity_encoder or named)

    def _load_prior(self, source: str) -> LatentPrior:
        prior = load_prior(source, self.device)
        prior.bf16 = self.setting.precision == "bf16"
        return prior


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)
