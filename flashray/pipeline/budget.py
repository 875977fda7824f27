"""Fit a run into a budget by milder starts than the recipe's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from flashray.errors import ConfigError
from flashray.pipeline.cost import CostModel, Prediction, predict_packed
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.units import Packing
from flashray.pipeline.workload import Workload

GRAIN = 1024  # factors are multiples of 1/GRAIN


def effective(config: RunConfig, kept: Mapping[str, Any] | None) -> RunConfig:
    """The configuration with the starts that fit its budget, as `fit` found them."""
    return scaled(config, kept["scale"]) if kept else config


def scaled(config: RunConfig, scale: float) -> RunConfig:
    """The configuration with σ̂ multiplied by `scale`."""
    start = dataclasses.replace(config.recipe.start, sigma_scale=config.recipe.start.sigma_scale * scale)
    return config.replaced("recipe", start=start)


def fit(workload: Callable[[float], Workload], cost: CostModel, packing: Packing, config: RunConfig) -> dict[str, Any]:
    """The entry of a budget in run.json, with the largest factor on σ̂, `scale`, with which the run fits it.

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

    high, low = GRAIN, GRAIN
    if spent(predicted(GRAIN)) > budget:
        low = 1
        if (least := spent(predicted(1))) > budget:
            raise ConfigError(
                f"{name} is {budget:g}, and decoding the severity encoder's estimates alone takes {least:.4g}; "
                "give at least that, or more actors"
            )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(predicted(middle)) <= budget else (low, middle)
    scale = low / GRAIN
    before, after = workload(1.0), workload(scale)
    return {
        "requested": config.policy.budget,
        "scale": scale,
        "sigma_scale": config.recipe.start.sigma_scale * scale,
        "mean_nfe": after.mean_nfe,
        "mean_nfe_without": before.mean_nfe,
        "decoded_alone": int(((after.start_step == 0) & (before.start_step > 0)).sum()),
    }
