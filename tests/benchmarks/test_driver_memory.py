"""The benchmark of a run's records."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.driver_memory import DriverMemoryConfig, commit, driver_memory, plan_of
from flashray.pipeline.plan import write_plan
from flashray.pipeline.run_status import RunStatus


def test_made_up_records_are_those_of_a_run(tmp_path: Path) -> None:
    """Each image is in one unit, and half of the units are committed with the images that the plan gives them."""
    plan = plan_of(100, 16)
    write_plan(str(tmp_path), 0, plan)
    commit(str(tmp_path), plan, range(3), 16)
    status = RunStatus.read(str(tmp_path))
    assert (len(status.planned), len(status.pending), len(status.results)) == (100, 52, 48)
    assert status.results["key"].to_pylist() == plan["key"].to_pylist()[:48]


def test_every_step_is_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    driver_memory(DriverMemoryConfig(images=100, unit_images=16))
    printed = capsys.readouterr().out
    assert "100 images in 7 units" in printed
    for step in ("read the plan", "its pending images", "all commits, checked against the plan", "summary"):
        assert f"| {step} |" in printed
