"""Fit a run into a budget by milder starts than the recipe's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flashray.errors import ConfigError
from flashray.pipeline.cost import CostModel, Prediction, predict_packed
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.units import Packing
from flashray.pipeline.workload import Workload

GRAIN = 1024  # factors are multiples of 1/GRAIN


@dataclass(frozen=True)
class Fit:
    """A budget and its effect on a plan."""

    scale: float  # factor on σ̂, in (0, 1]; 1 if the budget is enough
    whole: Prediction  # the plan's cost without the budget
    fitted: Prediction  # and with it
    mean_nfe: tuple[float, float]  # of the images, without and with the budget
    decoded: int  # images that take no step because of the budget, so that ẑ alone is decoded


def entry(config: RunConfig, found: Fit) -> dict[str, Any]:
    """The entry of a budget in run.json, from which `effective` makes the same starts again."""
    return {
        "requested": config.policy.budget,
        "scale": found.scale,
        "sigma_scale": config.recipe.start.sigma_scale * found.scale,
        "mean_nfe": found.mean_nfe[1],
        "mean_nfe_without": found.mean_nfe[0],
        "decoded_alone": found.decoded,
    }


def effective(config: RunConfig, kept: Mapping[str, Any] | None) -> RunConfig:
    """The configuration with the starts that fit its budget, as `entry` recorded them."""
    return scaled(config, kept["scale"]) if kept else config


def scaled(config: RunConfig, scale: float) -> RunConfig:
    """The configuration with σ̂ multiplied by `scale`."""
    start = dataclasses.replace(config.recipe.start, sigma_scale=config.recipe.start.sigma_scale * scale)
    return config.replaced("recipe", start=start)


def fit(workload: Callable[[float], Workload], cost: CostModel, packing: Packing, config: RunConfig) -> Fit:
    """The largest factor on σ̂ with which the run fits its budget.

    The start step of a window is a monotone function of its σ̂, so any factor keeps the order of difficulty, and the
    result is exactly that of the recipe with this `start.sigma_scale`. A chain respaced to fewer steps would keep the
    order too, but solvers' step sizes are tuned for the spacing, and images that take few steps would lose the most.

    Bisection over `GRAIN` factors, each predicted with the packing and dispatch of a run; `workload` takes a factor.
    A larger budget never gives a smaller factor, because the bisections for two budgets agree until the larger one goes
    up and the other one down. ConfigError, with the least possible one, when decoding ẑ alone exceeds the budget.
    """
    ((name, budget),) = config.policy.budget.items()

    def spent(prediction: Prediction) -> float:
        return prediction.wall_seconds if name == "budget_seconds" else prediction.device_hours

    def predicted(scale: int) -> Prediction:
        return predict_packed(workload(scale / GRAIN), packing, cost)

    whole = fitted = predicted(GRAIN)
    high, low = GRAIN, GRAIN
    if spent(whole) > budget:
        low, fitted = 1, predicted(1)
        if spent(fitted) > budget:
            raise ConfigError(
                f"{name} is {budget:g}, and decoding the severity encoder's estimates alone takes {spent(fitted):.4g}; "
                "give at least that, or more actors"
            )
    while high - low > 1:
        middle = (low + high) // 2
        prediction = predicted(middle)
        if spent(prediction) <= budget:
            low, fitted = middle, prediction
        else:
            high = middle
    before, after = workload(1.0), workload(low / GRAIN)
    means = (before.mean_nfe, after.mean_nfe)
    return Fit(low / GRAIN, whole, fitted, means, int(((after.start_step == 0) & (before.start_step > 0)).sum()))
