"""Budgets: kept, never grudging, monotone, and blind to nothing but the scale of σ̂."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
import torch

from flashray.errors import ConfigError
from flashray.pipeline import budget
from flashray.pipeline.cost import CostModel, Prediction, predict, predict_packed
from flashray.pipeline.open_run import Run
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.units import Packing
from flashray.pipeline.workload import Integers, Workload
from flashray.schedule import NoiseSchedule
from flashray.severity import Start
from tests.support.runs import config_of

COST = CostModel((1, 8), (0.5, 1.0), decode_seconds=0.1, other_seconds=0.2, start_up_seconds=5.0)
PACKING = Packing(None, slots=8, actors=3)
SIGMA = torch.from_numpy(np.random.default_rng(0).gamma(2.0, 0.1, 300).clip(0.01, 0.95))


def config(**values: float) -> RunConfig:
    return config_of("/a", "/o", start=Start(sigma_scale=0.8), **values)  # type: ignore[arg-type]


def lengths(scale: float) -> Integers:
    start = budget.scaled(config(), scale).recipe.start
    return start.start_step(SIGMA, NoiseSchedule.from_scheduler_config({}).respaced(100))[0].numpy()


def fit(**values: float) -> dict[str, Any]:
    return budget.fit(lambda scale: Workload.of_windows(lengths(scale)), COST, PACKING, config(**values))


def cost(scale: float) -> Prediction:
    return predict_packed(Workload.of_windows(lengths(scale)), PACKING, COST)


def test_without_a_budget_the_configuration_stays() -> None:
    assert config().policy.budget == {}
    assert budget.effective(config(), None) == budget.effective(config(), {}) == config()


def test_a_budget_that_is_enough_changes_nothing() -> None:
    whole = fit(budget_seconds=1e9)
    assert (whole["scale"], whole["decoded_alone"]) == (1, 0)
    assert whole["mean_nfe"] == whole["mean_nfe_without"]
    assert fit(budget_seconds=cost(1).wall_seconds)["scale"] == 1


@pytest.mark.parametrize(("name", "of"), [("budget_seconds", "wall_seconds"), ("budget_gpu_hours", "device_hours")])
def test_budgets_are_kept_and_more_money_never_buys_less(name: str, of: str) -> None:
    whole = getattr(cost(1), of)
    none = np.zeros(len(SIGMA), np.int64)
    least = getattr(predict(Workload.of_windows(none), np.arange(0, len(none), 8), 8, 3, COST), of)
    budgets = np.linspace(1.05 * least, 1.1 * whole, 25)
    scales = [fit(**{name: value})["scale"] for value in budgets]
    assert scales == sorted(scales)
    assert len(set(scales)) > 10
    for value, scale in zip(budgets, scales, strict=True):
        fitted = getattr(cost(scale), of)
        assert fitted <= value
        if scale < 1:  # and a little more would not do
            assert fit(**{name: fitted + 1e-9})["scale"] == pytest.approx(scale, abs=0.02)


def test_the_order_of_difficulty_stays() -> None:
    hardest = SIGMA.argsort(descending=True).numpy()
    for scale in (1.0, 0.7, 0.31, 0.05, 1 / budget.GRAIN):
        assert (np.diff(lengths(scale)[hardest]) <= 0).all()
    assert lengths(1 / budget.GRAIN).max() == 0  # the least there is: ẑ decoded alone


def test_an_impossible_budget_names_the_least_possible() -> None:
    with pytest.raises(ConfigError, match=r"budget_seconds is 6, and .* alone takes (\S+); give") as caught:
        fit(budget_seconds=6)
    least = float(str(caught.value).split("takes ")[1].split(";")[0])
    assert least > 5 + 300 * 0.3 / 3 - 0.1  # start-up, and what each image costs beside its chain, on three actors
    assert fit(budget_seconds=1.001 * least)["decoded_alone"] > 0


def test_another_budget_is_refused_in_words() -> None:
    status = SimpleNamespace(attempts=1, planned=pa.table({"unit_id": ["u"]}), units={"u"})
    values: dict[str, Any] = {"output": "/o", "status": status, "_new": list}
    run = SimpleNamespace(**values, requested=config_of(budget_seconds=60.0), record={})
    with pytest.raises(ConfigError, match=r"planned with no budget and .* asks for budget_seconds 60: choose"):
        Run._rebudgeted(cast(Run, run))


def test_what_is_kept_gives_the_same_starts_again() -> None:
    asked = config(budget_seconds=60)
    kept = fit(budget_seconds=60)
    assert 0 < kept["scale"] < 1
    assert kept["requested"] == {"budget_seconds": 60}
    assert kept["sigma_scale"] == pytest.approx(0.8 * kept["scale"])
    assert kept["mean_nfe"] == pytest.approx(lengths(kept["scale"]).mean())
    assert kept["mean_nfe_without"] == pytest.approx(lengths(1).mean())
    effective = budget.effective(asked, kept)
    assert effective.recipe.start.sigma_scale == kept["sigma_scale"]
    assert effective.replaced("recipe", start=asked.recipe.start) == asked
