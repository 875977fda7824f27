"""The quote and the budget: in words, in run.json and cost.json, and through a whole run whose passes stay here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashray.errors import ConfigError
from flashray.pipeline import calibrate, run, summary
from flashray.pipeline.commit import write_commit
from flashray.pipeline.cost import CostModel, Quoted, predict_plan, read_quoted
from flashray.pipeline.load import load
from flashray.pipeline.plan import SeverityActor, chunks, finish_plan, write_plan
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig, check
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.solve import SolverActor, rows_of
from flashray.pipeline.units import index
from flashray.pipeline.write import write
from flashray.recipe import SolverConfig
from flashray.severity import Start
from flashray.tracking.tracking_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.plans import found, schedule, work
from tests.support.runs import changed, config_of, record, summary_of

COST = CostModel((1, 2), (1.0, 1.5), decode_seconds=0.25, other_seconds=0.5, start_up_seconds=8.0)
QUOTED = Quoted({"fingerprint": "f", "device": "cpu", "threads": 3, "accelerators": []}, COST, actors=2)


@pytest.fixture
def planned(tmp_path: Path) -> RunStatus:
    sigmas: list[float | None] = [0.05, None, 0.4, 0.1, 1.5, 0.2]
    write_plan(str(tmp_path), 0, finish_plan(found(sigmas), schedule(), work(slots=2).config, attempt=0, actors=2))
    return RunStatus.read(str(tmp_path))


def test_a_quote_without_a_clock_counts(planned: RunStatus) -> None:
    text = summary.quote(planned, 100, storage=2_340_000)
    assert "about 2.3 MB of storage" in text
    assert "about 2.3 GB" in summary.quote(planned, 100, storage=2_340_000_000)
    total = sum(planned.planned["nfe"].to_pylist())
    assert text.startswith("6 images, 1 of them unreadable\n")
    assert (
        f"total {total:,.0f} window evaluations, {total / 5:.1f} NFE an image; the full chain takes 500: "
        f"{1 - total / 500:.1%} saved" in text
    )
    assert "1 images fall back to the full chain" in text
    assert sum(int(line.split()[4].replace(",", "")) for line in text.splitlines() if line.startswith("  NFE")) == 5
    assert "slots" not in text


def test_a_quote_with_a_clock_tells_time_and_money(planned: RunStatus) -> None:
    text = summary.quote(planned, 100, 2, QUOTED)
    price = predict_plan(planned.planned, 2, 2, COST)
    minutes, seconds = divmod(round(price.wall_seconds), 60)
    assert f"about {minutes}:{seconds:02d} on 2 CPU actors of 3 threads with 2 slots, 0:08 of it to start" in text
    assert f"{2 * 3 * price.wall_seconds / 3600:.3g} core-hours" in text
    assert f"{price.units} units, {price.slot_utilization:.1%} of the slots filled" in text
    assert "0.75 s an NFE with all slots filled, 0.75 s an image besides" in text
    on_gpus = dataclasses.replace(QUOTED, key=QUOTED.key | {"device": "cuda"}, actors=1)
    text = summary.quote(planned, 100, 2, on_gpus)
    assert "on 1 GPU with 2 slots" in text
    assert f"{predict_plan(planned.planned, 2, 1, COST).wall_seconds / 3600:.3g} GPU-hours" in text


def test_a_quote_says_what_a_budget_costs(planned: RunStatus) -> None:
    kept = {
        "requested": {"budget_seconds": 60.0},
        "scale": 0.5,
        "sigma_scale": 0.1,
        "mean_nfe": 4.0,
        "mean_nfe_without": 9.5,
        "decoded_alone": 2,
    }
    text = summary.quote(planned, 100, 2, QUOTED, kept)
    assert "budget_seconds 60: every chain starts at 50.0% of the σ̂ that the recipe asks for" in text
    assert "4.0 NFE an image instead of 9.5; 2 images are left with ẑ decoded alone" in text
    assert "budget_seconds 60 is enough" in summary.quote(planned, 100, 2, QUOTED, kept | {"scale": 1})


def test_nothing_readable_costs_nothing(tmp_path: Path) -> None:
    write_plan(str(tmp_path), 0, finish_plan(found([None, None]), schedule(), work().config, attempt=0))
    assert summary.quote(RunStatus.read(str(tmp_path)), 100, 2, QUOTED) == "2 images, 2 of them unreadable"


def test_the_summary_compares_the_prediction_with_what_it_took(planned: RunStatus) -> None:
    for unit in rows_of(planned.planned, index(planned.planned), work()).to_pylist():
        rows = [{"key": key, "status": "ok", "nfe": 1, "seconds": 2.0} for key in unit["key"]]
        write_commit(planned.output, unit["unit_id"], rows)
    state = RunStatus.read(planned.output)
    predicted = predict_plan(state.planned, 2, 2, COST).solver_seconds
    found = summary.summarise(state, 100, {}, 2, QUOTED)
    assert found["solver_seconds"] == 10.0
    assert found["predicted_solver_seconds"] == pytest.approx(predicted, abs=1e-3)
    assert found["predicted_over_actual_seconds"] == pytest.approx(predicted / 10, abs=1e-4)
    without = summary.summarise(state, 100, {})
    assert without["predicted_solver_seconds"] is without["predicted_over_actual_seconds"] is None


class Measured:
    """Stands for the calibration, and counts how often it is asked."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, plan: pa.Table, *_: Any) -> CostModel:
        self.times += 1
        assert len(plan)
        return COST


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    """The passes of a run in this process, and a measurement that takes no time."""

    def severities(listing: pa.Table, folder: str, work: Any, pools: Any, quarantine: Any, progress: Any) -> pa.Table:
        actor = SeverityActor(work, quarantine)
        return pa.concat_tables([actor(load(one, work, quarantine)) for one in _each(chunks(listing, 4))])

    def solve_units(plan: pa.Table, work: Any, pools: Any, quarantine: Any) -> Iterator[dict[str, Any]]:
        actor = SolverActor(work, quarantine)
        for one in _each(rows_of(plan, index(plan), work)):
            yield from write(actor(load(one, work, quarantine)), work, quarantine).to_pylist()

    measured = Measured()
    for name, value in {"severities": severities, "solve_units": solve_units, "measure_cost": measured}.items():
        monkeypatch.setattr(run, name, value)
    return measured


def _each(table: pa.Table) -> Iterator[pa.Table]:
    return (table.slice(row, 1) for row in range(len(table)))


@pytest.fixture
def config(tiny_models: TinyModels, archive: Path, tmp_path: Path, ray_cluster: None) -> RunConfig:
    return check(
        config_of(
            str(archive),
            str(tmp_path / "run"),
            measurement="simulated",
            prior=tiny_models.prior,
            start=Start(severity_encoder=tiny_models.encoder, formula="paper"),
            solver=SolverConfig(steps=20, settings={"dc_step": 0.1}),
            metrics=["psnr"],
            slots=2,
            solver_actors=1,  # whose time the figures below are
            tracking=TrackingConfig(enabled=False),
        )
    )


def quote_of(config: RunConfig, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert restore_archive(changed(config, plan_only=True)) == 0
    return capsys.readouterr().out


def steps_of(config: RunConfig) -> dict[str, int]:
    plan = RunStatus.read(config.io.output).plan
    return dict(zip(plan["key"].to_pylist(), plan["start_step"].to_pylist(), strict=True))


def test_ask_the_price_then_name_a_budget_then_run(
    config: RunConfig, measured: Measured, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = changed(config, provenance=False)  # the note names the run, and two runs are compared below
    first = quote_of(config, capsys)
    whole = steps_of(config)
    price = predict_plan(RunStatus.read(config.io.output).planned, 2, read_quoted(config.io.output).actors, COST)
    assert "core-hours" in first
    assert measured.times == 1

    with monkeypatch.context() as patch:  # the second time nothing is measured, and no cluster is asked for
        patch.setattr(run, "ray_session", None)
        assert quote_of(config, capsys) == first

    least = 8 + 10 * 0.75
    with pytest.raises(ConfigError, match=r"budget_seconds is 9, .* alone takes 15\.5"):
        restore_archive(changed(config, budget_seconds=9.0))
    assert steps_of(config) == whole  # a refused budget leaves the plan alone
    budgeted = changed(config, budget_seconds=(price.wall_seconds + least) / 2)
    told = quote_of(budgeted, capsys)
    assert "of the σ̂ that the recipe asks for" in told
    assert measured.times == 1
    shorter = steps_of(config)
    assert sum(shorter.values()) < sum(whole.values())
    assert all(shorter[key] <= steps for key, steps in whole.items())
    kept = json.loads((record(config.io.output) / "run.json").read_text())["budget"]
    assert kept["requested"] == {"budget_seconds": budgeted.policy.budget_seconds}

    plan = RunStatus.read(config.io.output).plan
    assert restore_archive(budgeted) == 0
    assert RunStatus.read(config.io.output).plan == plan
    found = summary_of(config.io.output)
    assert found["predicted_solver_seconds"] > 0
    assert found["predicted_over_actual_seconds"] > 0
    with pytest.raises(ConfigError, match=r"planned with budget_seconds .* asks for no budget"):
        restore_archive(config)

    # the budget is nothing but a scale on σ̂: the same recipe with that scale gives the same bytes
    scaled = changed(
        config,
        output=config.io.output + " scaled",
        start=dataclasses.replace(config.recipe.start, sigma_scale=kept["sigma_scale"]),
    )
    assert restore_archive(scaled) == 0
    one, other = (
        {row["key"]: row["sha256"] for row in RunStatus.read(c.io.output).results.to_pylist()} for c in (config, scaled)
    )
    assert one == other
    assert len(set(one.values())) == 10
    assert read_quoted(scaled.io.output) is None  # nobody asked for its price
    assert summary_of(scaled.io.output)["predicted_solver_seconds"] is None


def test_a_limit_below_what_is_planned_is_refused(config: RunConfig, measured: Measured) -> None:
    """After a quote of the whole archive a trial would otherwise restore all of it."""
    assert restore_archive(changed(config, plan_only=True)) == 0
    with pytest.raises(ConfigError, match=r"limit is 1, and the run in .* has planned \d+ images; give"):
        restore_archive(changed(config, limit=1))


def test_a_budget_whose_cost_cannot_be_measured_is_refused(
    config: RunConfig, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "measure_cost", lambda *_: None)
    with pytest.raises(ConfigError, match="could not be measured, so no budget can be kept"):
        restore_archive(changed(config, budget_seconds=1000.0))
    assert restore_archive(config) == 0, "without a budget nothing has to be measured"


def test_an_interrupted_budget_goes_on_with_the_same_starts(
    config: RunConfig, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, budget_gpu_hours=0.006, unit_images=2)
    whole = run.solve_units

    def one_unit(*args: Any) -> Iterator[dict[str, Any]]:
        yield next(iter(whole(*args)))
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "solve_units", one_unit)
    with pytest.raises(KeyboardInterrupt):
        restore_archive(config)
    begun, steps = RunStatus.read(config.io.output), steps_of(config)
    assert len(begun.units) == 1
    monkeypatch.setattr(run, "solve_units", whole)
    monkeypatch.setattr(measured, "times", 0)
    assert restore_archive(config) == 0
    assert measured.times == 0
    assert steps_of(config) == steps
    fresh = changed(config, output=config.io.output + " again")
    assert restore_archive(fresh) == 0
    assert RunStatus.read(fresh.io.output).results.drop(["seconds"]) == RunStatus.read(config.io.output).results.drop(
        ["seconds"]
    )


def test_another_machine_is_measured_anew(config: RunConfig, measured: Measured, monkeypatch: Any) -> None:
    quoting = changed(config, plan_only=True)
    assert restore_archive(quoting) == 0
    monkeypatch.setattr(run, "cost_key", lambda *_: calibrate_key("accelerator_type:H100"))
    budgeted = changed(config, budget_seconds=1000.0, plan_only=True)
    assert restore_archive(budgeted) == 0
    assert measured.times == 2
    assert read_quoted(config.io.output).key["accelerators"] == ["accelerator_type:H100"]
    assert restore_archive(changed(budgeted, budget_seconds=2000.0)) == 0
    assert measured.times == 2


def calibrate_key(kind: str) -> dict[str, Any]:
    return {"fingerprint": "f", "device": "cuda", "threads": 4, "accelerators": [kind]}


@pytest.mark.slow
def test_the_cost_is_measured_on_an_actor_of_the_pool(config: RunConfig, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(calibrate, "SECONDS", 0.1)
    assert "core-hours" in quote_of(config, capsys)
    cost = read_quoted(config.io.output).cost
    assert cost.filled == (1, 2)
    assert min(*cost.step_seconds, cost.start_up_seconds) > 0
    assert np.isfinite(pq.read_table(record(config.io.output) / "plan" / "plan-00.parquet")["nfe"].to_numpy()).all()
