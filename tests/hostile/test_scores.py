"""Numbers that are no numbers, and numbers of a few images that would pass for all."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from flashray.pipeline import run_record, summary
from flashray.pipeline.commit import write_commit
from flashray.pipeline.plan import finish_plan, write_plan
from flashray.pipeline.run_status import RunStatus
from flashray.severity import Start
from tests.support.plans import found, schedule, work

SIGMAS: list[float | None] = [0.1, math.nan, 0.3, math.inf, 0.5, None, 0.2]


@pytest.fixture
def run(tmp_path: Path) -> RunStatus:
    """Seven images, σ̂ of two of them not finite, one unreadable, one with a reference."""
    output = str(tmp_path)
    write_plan(output, 0, finish_plan(found(SIGMAS), schedule(), work().config, attempt=0))
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in RunStatus.read(output).planned.to_pylist():
        one = {"key": row["key"], "status": "ok", "nfe": row["nfe"], "sigma_hat": row["sigma_hat"]}
        rows.setdefault(row["unit_id"], []).append(one | ({"psnr": 30.0} if row["key"] == "key 0" else {}))
    for unit, committed in rows.items():
        write_commit(output, unit, committed)
    return RunStatus.read(output)


def test_row_07_severities_that_are_no_numbers(run: RunStatus) -> None:
    planned = {row["key"]: row for row in run.plan.to_pylist()}
    for key in ("key 1", "key 3"):
        assert planned[key]["fallback"]
        assert planned[key]["nfe"] == 100
    found = summary.summarise(run, 100, {})
    assert found["fallbacks"] == 2
    assert found["mean_sigma_hat"] == pytest.approx((0.1 + 0.3 + 0.5 + 0.2) / 4)
    assert found["distributions"]["sigma_hat"]["max"] == 0.5
    assert json.loads(run_record.dump(found)) is not None
    assert all(value is None or math.isfinite(value) for value in summary.numbers(found).values())
    assert "2 images fall back to the full chain" in summary.quote(run, 100)


def test_row_07_only_severities_that_are_no_numbers(tmp_path: Path) -> None:
    write_plan(str(tmp_path), 0, finish_plan(found([math.nan] * 3), schedule(), work().config, attempt=0))
    state = RunStatus.read(str(tmp_path))
    made = summary.summarise(state, 100, {})
    assert made["mean_sigma_hat"] is None
    assert "sigma_hat" not in made["distributions"]
    run_record.dump(made)


def test_row_07_starts_of_such_severities() -> None:
    sigma = torch.tensor([math.nan, math.inf, -math.inf, 1e300, 0.0, -1.0])
    for formula in ("paper", "schedule"):
        step, fallback = Start(formula=formula).start_step(sigma, schedule())
        assert step.tolist()[:4] == [100] * 4
        assert fallback.tolist()[:4] == [True] * 4


def test_row_18_one_of_seven_references(run: RunStatus, tmp_path: Path) -> None:
    found = summary.summarise(run, 100, {})
    assert (found["restored"], found["scored"], found["psnr"], found["psnr_interval"]) == (6, 1, 30.0, None)
    beside = {"other_files": 0, "copied_files": 0, "not_copied": [], "unreadable_folders": []}
    assert summary.remarks(found | beside) == ["scored are 1 of 6 images: the others' references cannot be read"]
    for scored in (0, 6):
        assert summary.remarks(found | beside | {"scored": scored}) == []
