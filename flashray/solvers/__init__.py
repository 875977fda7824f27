"""Solvers: one file an update rule."""

from __future__ import annotations

from typing import Any

from flashray.build import build
from flashray.solvers.gml_dps import GMLDPS
from flashray.solvers.latent_dps import LatentDPS
from flashray.solvers.proximal import Proximal
from flashray.solvers.psld import PSLD
from flashray.solvers.resample import ReSample
from flashray.solvers.solver import Problem, Solver, Step
from flashray.solvers.unguided import Unguided

SOLVERS: dict[str, type[Solver]] = {rule.name: rule for rule in (LatentDPS, GMLDPS, PSLD, ReSample, Proximal, Unguided)}

__all__ = ["SOLVERS", "Problem", "Solver", "Step", "make_solver"]


def make_solver(name: str, settings: dict[str, Any] | None = None) -> Solver:
    """The solver of this name; ConfigError names an unknown solver or setting and lists the known ones."""
    return build("solver", SOLVERS, name, settings)
