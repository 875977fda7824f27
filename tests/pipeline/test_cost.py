"""The cost model: predictions against sums by hand, and its measurement on the run's own actor."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch

from flashray.errors import ImageError
from flashray.pipeline import calibrate
from flashray.pipeline.calibrate import Calibrator, TrialActor, evenly, mean, numbers_filled, of_actor, part, sample
from flashray.pipeline.cost import CostModel, Quoted, predict, predict_full, predict_plan, read_quoted, write_quoted
from flashray.pipeline.load import load
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.run_folder import RUN_FOLDER
from flashray.pipeline.units import unit_ids
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.pipeline.workload import Workload
from flashray.recipe import SolverConfig
from flashray.schedule import NoiseSchedule
from tests.pipeline.conftest import planned
from tests.support.runs import changed

COST = CostModel((1, 4), (1.0, 2.5), decode_seconds=0.1, other_seconds=0.25, start_up_seconds=7.0)


def test_steps_between_what_was_timed_lie_on_a_line() -> None:
    assert COST.steps(4).tolist() == [1.0, 1.5, 2.0, 2.5]
    assert COST.nfe_seconds == 2.5 / 4
    assert CostModel((1,), (3.0,), 0, 0, 0).steps(1).tolist() == [3.0]


def test_a_prediction_is_the_sum_of_its_parts() -> None:
    nfe = np.array([6, 6, 5, 4, 2, 1])  # two units on four slots: 6 6 5 4, then 2 1
    found = predict(Workload.of_windows(nfe), np.array([0, 4]), 4, 1, COST)
    chains = (4 * 2.5 + 1 * 2.0 + 1 * 1.5) + (1 * 1.5 + 1 * 1.0)
    assert found.solver_seconds == pytest.approx(chains + 6 * 0.1)
    assert found.wall_seconds == pytest.approx(7.0 + chains + 6 * 0.35)
    assert found.device_hours == pytest.approx(found.wall_seconds / 3600)
    assert found.slot_utilization == pytest.approx(24 / (4 * 8))
    assert found.units == 2


def test_two_actors_take_a_unit_each() -> None:
    nfe, first = np.array([8, 8, 8, 8]), np.array([0, 2])
    alone, together = (predict(Workload.of_windows(nfe), first, 2, actors, COST) for actors in (1, 2))
    assert together.solver_seconds == alone.solver_seconds
    assert together.wall_seconds - 7 == pytest.approx((alone.wall_seconds - 7) / 2)
    assert together.device_hours == pytest.approx(2 * together.wall_seconds / 3600)
    idle = predict(Workload.of_windows(nfe), first, 2, 10, COST)  # more actors than units: the rest is not started
    assert idle.wall_seconds == together.wall_seconds


def test_a_plan_is_read_in_its_units() -> None:
    nfe, unit = np.array([6, 6, 5, 4, 2, 1]), np.array([0, 0, 0, 0, 1, 1])
    load = Workload.of_windows(nfe)
    plan = pa.table({"unit_id": unit_ids(0, unit), "starts": load.as_maps(), "pixels": load.pixels})
    assert predict_plan(plan, 4, 3, COST) == predict(Workload.of_windows(nfe), np.array([0, 4]), 4, 3, COST)
    assert predict_plan(plan.slice(0, 0), 4, 3, COST).solver_seconds == 0


def test_the_full_chain_costs_every_step_of_every_image() -> None:
    found = predict_full(Workload.of_windows(np.full(64, 3)), 1000, 4, 2, COST)
    assert found is not None
    assert found.solver_seconds == pytest.approx(64 * (1000 * 2.5 / 4 + 0.1))
    assert found.slot_utilization == 1


def test_what_was_measured_is_kept(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert read_quoted(output) is None
    quoted = Quoted({"device": "cpu", "threads": 2, "accelerators": []}, COST, actors=3)
    write_quoted(output, quoted)
    assert read_quoted(output) == quoted
    assert (quoted.key["device"], quoted.key["threads"]) == ("cpu", 2)
    (tmp_path / RUN_FOLDER / "cost.json").write_text(
        '{"key": {}, "cost": {"speed": 3}, "actors": 1}'
    )  # of another version
    assert read_quoted(output) is None


@pytest.mark.parametrize(("slots", "numbers"), [(1, [1]), (2, [1, 2]), (8, [1, 2, 8]), (64, [1, 4, 16, 64])])
def test_numbers_of_slots_to_time(slots: int, numbers: list[int]) -> None:
    assert numbers_filled(slots) == numbers


def test_places_are_spread_evenly_however_many_are_taken() -> None:
    places = list(evenly(15))
    assert places[:4] == [0.5, 0.25, 0.75, 0.125]
    for count in (1, 3, 7, 15):
        assert sorted(places[:count]) == [(i + 1) / (count + 1) for i in range(count)]


def test_parts_of_a_chain_keep_each_steps_own_noise_levels() -> None:
    schedule = NoiseSchedule.from_scheduler_config({}).respaced(100)
    visits = np.array([10] * 20 + [1] * 20)  # all pass the lowest 20 steps, one image in ten those above
    for place, length in ((0.5, 4), (0.01, 4), (0.99, 4), (0.5, 40), (0.9, 1)):
        piece, steps = part(schedule, visits, place, length)
        assert steps == length
        assert len(piece) == length + 1  # its own top is never reached: that would be a start from pure noise
        bottom = schedule.timesteps.tolist().index(piece.timesteps[0].item())
        assert bottom + length <= 40
        assert torch.equal(piece.alphas_cumprod, schedule.alphas_cumprod[bottom : bottom + length + 1])
        assert torch.equal(piece.alphas_cumprod_prev, schedule.alphas_cumprod_prev[bottom : bottom + length + 1])
    middle, _ = part(schedule, visits, 0.5, 1)
    assert middle.timesteps[0] == schedule.timesteps[10]  # half of the work lies below it
    full, steps = part(schedule, np.full(100, 3), 0.5, 100)
    assert (len(full), steps) == (100, 100)


@pytest.fixture
def plan(work: WorkerSettings, ray_cluster: None) -> pa.Table:
    return planned(work, start_quarantine())


def test_a_sample_fills_the_slots_and_knows_the_steps_that_are_visited(plan: pa.Table, work: WorkerSettings) -> None:
    unit = sample(plan, work)
    assert unit["images"].to_pylist() == [3]
    nfe = plan["start_step"].to_numpy()
    (visits,) = unit["visits"].to_pylist()
    assert visits == [int((nfe > step).sum()) for step in range(nfe.max())]
    few = sample(plan.slice(0, 1), work)  # an archive smaller than the slots fills them with its images again
    key = plan["key"][0].as_py()
    assert few["key"].to_pylist() == [[f"{n} {key}" for n in range(3)]]


def test_an_image_that_fills_several_slots_is_solved_in_each(plan: pa.Table, work: WorkerSettings) -> None:
    quarantine = start_quarantine()
    loaded = load(sample(plan.slice(0, 1), work).drop_columns("visits"), work, quarantine)
    (solved,) = TrialActor(work, quarantine)(loaded).to_pylist()
    assert [row["error"] for row in solved["rows"]] == [None] * 3
    assert all(image is not None for image in solved["images"])


def test_the_measurement_flies_the_very_solver(
    plan: pa.Table, work: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that ticks once for each image's step in the engine, seconds are exactly those ticks."""
    monkeypatch.setattr(calibrate, "SECONDS", 6.0)
    actor = Calibrator(work, start_quarantine())
    flown: list[tuple[int, int]] = []

    def ticking(table: pa.Table) -> pa.Table:
        (unit,) = table.to_pylist()
        (steps,) = set(unit["start_step"])
        count = len(unit["key"])
        assert len(unit["data"]) == count
        assert len(actor.actor.restorer.schedule) >= steps
        flown.append((count, steps))
        rows = [{"seconds": steps * (0.5 + 0.25 * count) / count + 0.125, "error": None} for _ in range(count)]
        return pa.Table.from_pylist([{"rows": rows}])

    actor.actor = type("Ticking", (), {"__call__": staticmethod(ticking)})()  # type: ignore[assignment]
    real = Calibrator(work, start_quarantine()).actor
    actor.actor.restorer = real.restorer  # type: ignore[misc]
    found = actor.measure(sample(plan, work))
    assert found["filled"] == (1, 3)
    assert found["decode_seconds"] == pytest.approx(0.125)
    assert found["step_seconds"] == pytest.approx((0.75, 1.25))
    assert flown[0] == (3, 1)  # a warm-up
    assert {count for count, _ in flown} == {1, 3}
    assert max(steps for _, steps in flown) <= plan["nfe"].to_numpy().max()


def test_a_real_measurement_is_finite_and_positive(
    plan: pa.Table, work: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibrate, "SECONDS", 0.0)
    cost = CostModel(**Calibrator(work, start_quarantine()).measure(sample(plan, work)), start_up_seconds=0.0)
    assert all(0 < seconds < math.inf for seconds in (*cost.step_seconds, cost.decode_seconds, cost.other_seconds))


def test_actors_that_are_timed_at_the_same_time_count_as_no_deaths(plan: pa.Table, work: WorkerSettings) -> None:
    quarantine, unit = start_quarantine(), sample(plan, work)
    names = [of_actor(unit, n)["unit_id"][0].as_py() for n in range(4)]
    assert [ray.get(quarantine.begin.remote(f"solving {name}")).deaths for name in names] == [0] * 4


def test_an_archive_that_vanished_cannot_be_measured(plan: pa.Table, work: WorkerSettings, tmp_path: Path) -> None:
    gone = plan.set_column(plan.column_names.index("uri"), "uri", pa.array([f"{tmp_path}/gone.png"] * len(plan)))
    with pytest.raises(ImageError, match="no longer there"):
        Calibrator(work, start_quarantine()).measure(sample(gone, work))


def test_a_periodic_solver_is_timed_in_whole_periods(
    plan: pa.Table, work: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(work.config, solver=SolverConfig("resample", 20, settings={"every": 3}))
    actor = Calibrator(WorkerSettings.of(config, "cpu", 1, lpips=False), start_quarantine())
    flown: list[int] = []

    def trial(loaded: Any, count: int, schedule: NoiseSchedule, steps: int) -> tuple[float, float]:
        flown.append(steps)
        return 1.0, 0.0

    monkeypatch.setattr(actor, "trial", trial)
    actor.step_seconds({}, 4, np.ones(20, np.int64), 0.0)
    assert flown
    assert all(steps % 3 == 0 for steps in flown)


def test_trials_have_the_threads_of_the_run(
    plan: pa.Table, work: WorkerSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the sample takes one, in the same process."""
    actor = Calibrator(dataclasses.replace(work, threads=2), start_quarantine())
    threads: list[int] = []

    def trial(*_: Any) -> tuple[float, float]:
        threads.append(torch.get_num_threads())
        return 1.0, 0.0

    monkeypatch.setattr(actor, "trial", trial)
    try:
        actor.measure(sample(plan, work))
    finally:
        torch.set_num_threads(1)
    assert set(threads) == {2}


def test_what_several_actors_say_is_averaged():
    one = {"filled": (1, 8), "step_seconds": (0.1, 0.4), "decode_seconds": 0.02, "other_seconds": 0.03}
    other = {"filled": (1, 8), "step_seconds": (0.3, 0.6), "decode_seconds": 0.04, "other_seconds": 0.05}
    found = mean([one, other])
    assert found["filled"] == (1, 8)
    assert found["step_seconds"] == pytest.approx((0.2, 0.5))
    assert (found["decode_seconds"], found["other_seconds"]) == pytest.approx((0.03, 0.04))
    assert mean([one]) == one
