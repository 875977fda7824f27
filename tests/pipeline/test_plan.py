"""The plan: chunks, start steps, units, and the latest word on each image."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import torch

from flashray.errors import ConfigError
from flashray.pipeline.archive import LISTING
from flashray.pipeline.commit import write_commit
from flashray.pipeline.plan import PLAN, chunks, finish_plan, latest_rows, read_plans, write_plan
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.units import gather, index
from flashray.severity import Start
from tests.support.plans import found, schedule, work


@pytest.mark.parametrize("n", [1, 15, 16, 17, 48])
def test_chunks_hold_the_listing_in_order(n: int) -> None:
    rows = [{"index": i, "key": f"key {i}", "uri": f"/a/{i}", "size": i} for i in range(n)]
    table = chunks(pa.Table.from_pylist(rows, schema=LISTING), 16)
    assert table["key"].combine_chunks().flatten().to_pylist() == [row["key"] for row in rows]
    assert {len(keys) for keys in table["key"].to_pylist()[:-1]} <= {16}
    assert len(set(table["unit_id"].to_pylist())) == len(table) == -(-n // 16)


def test_start_steps_follow_severity_and_failures_stay_rows() -> None:
    plan = finish_plan(found([0.05, None, 0.4, 0.1, 1.5]), schedule(), work().config, attempt=0)
    assert plan.schema == PLAN
    rows = {row["key"]: row for row in plan.to_pylist()}
    assert len(rows) == 5
    assert [rows[f"key {i}"]["start_step"] for i in (4, 2, 3, 0)] == sorted(
        (rows[f"key {i}"]["start_step"] for i in (0, 2, 3, 4)), reverse=True
    )
    assert all(row["nfe"] == row["start_step"] for row in rows.values())
    assert rows["key 4"]["fallback"]
    assert rows["key 4"]["nfe"] == 100
    assert rows["key 1"] | {"unit_id": None, "nfe": None, "status": "error", "error": "torn"} == rows["key 1"]
    expected = schedule().start_step(torch.tensor([0.4])).item()
    assert rows["key 2"]["start_step"] == expected


def test_full_chains_need_no_severity() -> None:
    table = found([0.1, 0.1]).drop_columns(["window_sigma"])
    plan = finish_plan(table, schedule(), work(start=Start(mode="full")).config, attempt=0)
    assert plan["nfe"].to_pylist() == [100, 100]
    assert plan["fallback"].to_pylist() == [False, False]


def test_an_archive_of_which_nothing_can_be_read() -> None:
    plan = finish_plan(found([None, None]), schedule(), work().config, attempt=0)
    assert plan["status"].to_pylist() == ["error", "error"]
    assert plan["unit_id"].null_count == 2


def test_the_latest_attempt_counts(tmp_path: Path) -> None:
    output = str(tmp_path)
    assert read_plans(output) == []
    first = finish_plan(found([0.1, None, 0.3]), schedule(), work().config, attempt=0)
    write_plan(output, 0, first)
    second = finish_plan(found([0.1, 0.2, 0.3]).slice(1, 1), schedule(), work().config, attempt=1)
    write_plan(output, 1, second)
    plans = read_plans(output)
    assert len(plans) == 2
    plan = latest_rows(plans)
    rows = {row["key"]: row for row in plan.to_pylist()}
    assert len(plan) == len(rows) == 3
    assert rows["key 1"]["unit_id"] == "01-00000000"
    assert rows["key 0"]["unit_id"].startswith("00-")


def test_a_hundred_attempts_and_more_are_read_in_their_order(tmp_path: Path) -> None:
    for attempt in range(102):
        write_plan(str(tmp_path), attempt, PLAN.empty_table())
    last = finish_plan(found([0.1]), schedule(), work().config, attempt=102)
    write_plan(str(tmp_path), 102, last)
    plans = read_plans(str(tmp_path))
    assert len(plans) == 103
    assert plans[-1].equals(last)


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    plan = finish_plan(found([0.1]), schedule(), work().config, attempt=0)
    write_plan(str(tmp_path), 0, plan.drop_columns(["windows"]))
    with pytest.raises(ConfigError, match="another version"):
        read_plans(str(tmp_path))


def test_state_tells_pending_from_done_and_old_from_new(tmp_path: Path) -> None:
    output = str(tmp_path)
    write_plan(output, 0, finish_plan(found([0.1, None, 0.3, 0.5]), schedule(), work().config, attempt=0))
    state = RunStatus.read(output)
    assert len(state.pending) == 3
    assert state.failures["key"].to_pylist() == ["key 1"]
    ends = {"key 3": {"status": "error", "error": "diverged"}}
    for unit in gather(state.pending, index(state.pending), ["key"]).to_pylist():
        rows = [{"key": key} | ends.get(key, {"status": "ok"}) for key in unit["key"]]
        write_commit(output, unit["unit_id"], rows)
    state = RunStatus.read(output)
    assert len(state.pending) == 0
    assert state.failures.to_pylist() == [{"key": "key 1", "error": "torn"}, {"key": "key 3", "error": "diverged"}]

    again = finish_plan(
        found([0.1, 0.2, 0.3, 0.5]).filter(pa.array([False, True, False, True])), schedule(), work().config, attempt=1
    )
    write_plan(output, 1, again)
    state = RunStatus.read(output)
    assert sorted(state.pending["key"].to_pylist()) == ["key 1", "key 3"]
    assert len(state.failures) == 0  # what is being retried has not failed yet
    assert sorted(state.results["key"].to_pylist()) == ["key 0", "key 2"]
