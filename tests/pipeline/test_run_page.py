"""What the page of a run says, from plans and commits that are written by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flashray.pipeline.commit import COMMIT, write_commit
from flashray.pipeline.plan import PLAN, write_plan
from flashray.pipeline.run_folder import run_files
from flashray.pipeline.run_page import ROWS, _duration, _images, _movers, _starts
from flashray.pipeline.run_status import RunStatus


def commits(**columns: Any) -> pa.Table:
    count = len(next(iter(columns.values())))
    return pa.Table.from_pylist(
        [{name: values[i] for name, values in columns.items()} for i in range(count)], schema=COMMIT
    )


def plan_of(rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=PLAN)


def test_movers_are_the_ends_of_the_gain() -> None:
    gains = np.random.default_rng(0).permutation(20) - 3.0
    done = commits(key=[f"{g:+.0f}" for g in gains], psnr=(20 + gains).tolist(), measurement_psnr=[20.0] * 20)
    assert _movers(done) == (["+16", "+15", "+14"], ["-3", "-2", "-1"])
    few = commits(key=["a", "b", "c", "d"], psnr=[1.0, 2.0, 3.0, None], measurement_psnr=[1.0, 1.0, float("inf"), 1.0])
    assert _movers(few) == ([], []), "of so few all are in the sample"


def test_durations_are_words() -> None:
    assert [_duration(s) for s in (0.31415, 38.2, 59.9999, 125, 6908)] == [
        *("0.314 s", "38.2 s", "60 s", "2 min 5 s", "1 h 55 min"),
    ]


@pytest.mark.parametrize("steps", [[0], [7, 7, 7], [0, 1000], list(range(13)), [3, 40, 41, 77]])
def test_bars_are_equally_wide_and_count_every_image(steps: list[int]) -> None:
    found = _starts(plan_of([{"key": str(n), "start_step": step} for n, step in enumerate(steps)]), 1000)
    assert found is not None
    assert sum(found.counts) == len(steps)
    assert len(set(np.diff(found.edges))) == 1
    assert found.edges[0] == min(steps)
    assert found.edges[-1] > max(steps)
    assert _starts(plan_of([]), 1000) is None


def test_the_table_says_what_became_of_each_image(tmp_path: Path) -> None:
    output = str(tmp_path)
    rows = [
        {"key": key, "unit_id": unit, "status": "ok" if unit else "error", "sigma_hat": sigma, "width": 8, "height": 9}
        for key, unit, sigma in (
            ("a", "u0", 0.5),
            ("b", "u0", 0.1),
            ("c", "u1", 0.3),
            ("d", None, None),
            ("e", "u0", 0.9),
        )
    ]
    write_plan(output, 0, plan_of(rows))
    made = [
        {
            "key": "a",
            "status": "ok",
            "nfe": 4,
            "psnr": 30.0,
            "measurement_psnr": 25.0,
            "lost": "alpha",
            "warnings": "odd.",
        },
        {"key": "b", "status": "ok", "nfe": 0, "unchanged": True},
        {"key": "e", "status": "error", "error": "diverged"},
    ]
    write_commit(output, "u0", made)
    status = RunStatus.read(output)
    table = _images(status, set())
    named = [dict(zip([column.name for column in table.columns], row, strict=True)) for row in table.rows]
    assert [(row["File"], row["Result"]) for row in named] == [
        *(("b", "unchanged"), ("c", "pending"), ("a", "restored"), ("e", "failed"), ("d", "failed")),
    ]
    assert named[2] == {
        "File": "a",
        "Result": "restored",
        "Pixels": "8 × 9",
        "σ̂": 0.5,
        "NFE": 4,
        "PSNR before": 25.0,
        "PSNR after": 30.0,
        "Gain": 5.0,
        "Remarks": "odd.; lost: alpha",
    }
    assert "Seconds" not in named[0], "what no image has is no column"


def test_the_table_of_a_large_run_is_a_sample(tmp_path: Path) -> None:
    output, count = str(tmp_path), 5 * ROWS
    rows = [{"key": f"{n:05d}", "unit_id": "u0", "status": "ok", "sigma_hat": n / count} for n in range(count)]
    write_plan(output, 0, plan_of(rows))
    status = RunStatus.read(output)
    pictured = {f"{n:05d}" for n in (1, 2, 3, 777)}
    table = _images(status, pictured)
    keys = [str(row[0]) for row in table.rows]
    assert ROWS - len(pictured) <= len(keys) <= ROWS
    assert pictured <= set(keys)
    assert keys == sorted(keys)
    assert (keys[0], keys[-1]) == ("00000", f"{count - 1:05d}")
    assert "2,000" in table.note


def test_a_page_is_a_runs_own_only_beside_its_record() -> None:
    keys = ["report.html", "a/report.html", "a/_flashray/run.json", "a_flashray/run.json", "b/_flashray/x", "c.png"]
    assert run_files(keys) & {*keys} == {"a/report.html", "a/_flashray/run.json", "b/_flashray/x"}
    assert run_files(["_flashray/run.json", "report.html", "b/report.html"]) == {"_flashray/run.json", "report.html"}
