"""How far each solver's samples are from the exact posterior, and how far they end with one thing wrong in it.

No solver here is exact: each replaces p(y | z_t) by something that it can compute. So a bound is what the right code
reaches at its best step size, with a tenth to spare, and not zero. `pytest -s` prints the tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from flashray.seeding import STREAM_RESAMPLE, STREAM_SOLVER
from flashray.solvers import Problem, Solver, Step, make_solver
from flashray.solvers.resample import ReSample
from flashray.solvers.solver import reverse_step
from flashray.solvers.unguided import Unguided
from tests.support.oracle import POSTERIOR, PRIOR, Distance, draw, from_posterior

STEPS = 50
TABLE = ((25, 1.0), (25, 2.0), (50, 0.5), (50, 1.0), (50, 2.0), (100, 0.5))  # steps, factor on the strength


@dataclass(frozen=True)
class Case:
    """A solver at its best settings for STEPS steps, and the 2-Wasserstein distance that it keeps below there.

    `strength` names the setting that the table varies; a setting given as a number is a float.
    """

    settings: dict[str, Any]
    strength: str
    bound: float


CASES = {
    "latent_dps": Case({"dc_step": 0.2}, "dc_step", 0.095),
    "gml_dps": Case({"dc_step": 0.14, "ae_weight": 0.2}, "dc_step", 0.126),
    "psld": Case({"dc_step": 0.14, "ae_weight": 0.1}, "dc_step", 0.118),
    # The posterior's proximal weight would be the noise's variance over that of ẑ0's error, near 0 at most steps.
    "resample": Case({"resample_step": 600.0, "every": 3, "proximal": 0.0, "iterations": 40}, "resample_step", 0.106),
    "proximal": Case({"rho": 0.01}, "rho", 0.28),
}


@cache
def measured(name: str, factor: float = 1.0, steps: int = STEPS) -> Distance:
    """Of the solver with its strength multiplied."""
    case = CASES[name]
    solver = make_solver(name, case.settings | {case.strength: factor * case.settings[case.strength]})
    return from_posterior(draw(solver, steps))


def row(*cells: object) -> str:
    return " ".join(f"{cell:13.3f}" if isinstance(cell, float) else f"{cell!s:>13}" for cell in cells)


@pytest.mark.parametrize("steps", [25, 50, 100])
def test_the_exact_score_of_the_posterior_samples_the_posterior(steps: int):
    """The oracle's own floor: what the chain's discretisation and the number of samples leave."""
    floor = from_posterior(draw(Unguided(), steps, latents=POSTERIOR))
    print(f"\nexact score, {steps} steps: {floor.wasserstein:.3f}")
    assert floor.wasserstein < 0.01 + 2 / steps


def test_ignoring_the_measurement_leaves_the_prior():
    assert from_posterior(PRIOR).wasserstein > 1.5
    assert from_posterior(draw(Unguided(), STEPS)).wasserstein > 1.4


@pytest.mark.parametrize("name", CASES)
def test_samples_are_near_the_exact_posterior(name: str):
    case = CASES[name]
    print(f"\n{name} {case.settings}: 2-Wasserstein distance to the posterior (the prior's: 1.563)")
    print(row("steps", case.strength, "mean", "cov", "W2"))
    for steps, factor in TABLE:
        found = measured(name, factor, steps)
        strength = factor * case.settings[case.strength]
        print(row(steps, strength, found.mean, found.covariance, found.wasserstein))
        assert found.wasserstein < 1  # even the worst row has listened to y
    assert measured(name).wasserstein < case.bound


# --- one thing wrong ---


@dataclass(frozen=True)
class Broken:
    """A solver whose correction of the plain reverse step is multiplied, or which misses or mistakes a noise."""

    solver: Solver
    factor: float = 1.0
    without: int | None = None  # a stream of noise
    noise_std: float = 1.0  # a factor on the measurement's

    name: ClassVar[str] = "broken"
    needs_adjoint: ClassVar[bool] = False

    @property
    def needs_gradient(self) -> bool:
        return self.solver.needs_gradient

    def __call__(self, step: Step, problem: Problem) -> Tensor:
        noise = step.noise
        step = dataclasses.replace(step, noise=lambda stream: noise(stream) * float(stream != self.without))
        problem = dataclasses.replace(problem, noise_std_B=self.noise_std * problem.noise_std_B)
        plain = reverse_step(step, step.noise(STREAM_SOLVER))
        return plain + self.factor * (self.solver(step, problem) - plain)


def glue_times(factor: float) -> Callable[[Solver], Solver]:
    """A solver would refuse a negative weight itself."""

    def break_it(solver: Any) -> Solver:
        broken = dataclasses.replace(solver)
        object.__setattr__(broken, "ae_weight", factor * solver.ae_weight)
        return broken

    return break_it


def consistency_times(factor: float) -> Callable[[Solver], Solver]:
    """Hard consistency that goes `factor` times as far; below 0, away from the measurement."""

    class Overdone(ReSample):
        def _agree(self, start: Tensor, residual: Callable[[Tensor], Tensor], problem: Problem) -> Tensor:
            return start + factor * (super()._agree(start, residual, problem) - start)

    return lambda solver: Overdone(**dataclasses.asdict(solver))  # type: ignore[call-overload]


def broken(**changes: float) -> Callable[[Solver], Solver]:
    return lambda solver: Broken(solver, **changes)  # type: ignore[arg-type]


GRADIENT = {
    "wrong sign of the gradient": broken(factor=-1),
    "twice the gradient": broken(factor=2),
    "half the gradient": broken(factor=0.5),
    "no ancestral noise": broken(without=STREAM_SOLVER),
}
MISTAKES = {
    "latent_dps": GRADIENT,
    "gml_dps": GRADIENT | {"wrong sign of the glue": glue_times(-1)},
    "psld": GRADIENT | {"wrong sign of the glue": glue_times(-1)},
    # Its ancestral noise is drawn anew by every correction and hardly matters here: the golden numbers hold it.
    "resample": {
        "wrong sign of the residual": consistency_times(-1),
        "z* twice as far": consistency_times(2),
        "z* half as far": consistency_times(0.5),
        "half the noise's scale": broken(noise_std=0.5),
        "twice the noise's scale": broken(noise_std=2),
        "no resampling noise": broken(without=STREAM_RESAMPLE),
    },
    # Twice the correction would do better here: the encoder takes a part of each one away.
    "proximal": {
        "wrong sign of the residual": broken(factor=-1),
        "half the correction": broken(factor=0.5),
        "no ancestral noise": broken(without=STREAM_SOLVER),
    },
}


@pytest.mark.parametrize(("name", "mistake"), [(name, mistake) for name in MISTAKES for mistake in MISTAKES[name]])
def test_one_thing_wrong_ends_beyond_the_bound(name: str, mistake: str):
    case = CASES[name]
    found = from_posterior(draw(MISTAKES[name][mistake](make_solver(name, case.settings)), STEPS))
    print(f"\n{name}, {mistake}: {found.wasserstein:.3f} against a bound of {case.bound}")
    assert not found.wasserstein < 1.25 * case.bound


def test_breaking_nothing_changes_nothing():
    """What the mistakes are made with is not itself the mistake."""
    for name, whole in {
        "latent_dps": broken(factor=1),
        "resample": consistency_times(1),
        "psld": glue_times(1),
    }.items():
        solver = make_solver(name, CASES[name].settings)
        one, other = draw(solver, 5, samples=20), draw(whole(solver), 5, samples=20)
        torch.testing.assert_close(one.mean_D, other.mean_D, rtol=1e-9, atol=1e-9)
