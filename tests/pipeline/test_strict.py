"""What an output cannot hold is refused before anything is solved, where the file and the format say it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from flashray.images.png import encode_16_bit
from flashray.pipeline.load import load
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.solve import SolverActor, rows_of
from flashray.pipeline.units import index
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.recipe import SolverConfig
from tests.pipeline.conftest import planned
from tests.support.image_files import colour_photo, deep, saved, soft_alpha
from tests.support.runs import MakeConfig, changed

STRICT = "the run is strict; lost: "


@pytest.fixture
def config(make: MakeConfig, tmp_path: Path) -> RunConfig:
    folder = tmp_path / "archive"
    folder.mkdir()
    small = colour_photo(20, 24)
    (folder / "plain.png").write_bytes(saved(small))
    (folder / "deep.png").write_bytes(encode_16_bit(deep(small)))
    alpha = np.concatenate([small, soft_alpha(20, 24)[..., None]], axis=-1)
    (folder / "clear.png").write_bytes(saved(alpha))
    (folder / "line.png").write_bytes(saved(np.resize(small, (16_384, 1, 3))))
    return make(folder, tmp_path / "run", solver=SolverConfig("proximal", 20))


def errors(config: RunConfig) -> dict[str, str | None]:
    """Of the plan's rows."""
    rows = planned(WorkerSettings.of(config, "cpu", 1, lpips=False), start_quarantine()).to_pylist()
    assert all((row["unit_id"] is None) is (row["error"] is not None) for row in rows)
    return {row["key"]: row["error"] for row in rows}


def test_a_strict_run_refuses_in_the_plan_what_the_format_cannot_hold(config: RunConfig, ray_cluster: None) -> None:
    found = errors(changed(config, format="jpeg", strict=True))
    assert found["plain.png"] is None
    assert str(found["deep.png"]).endswith(f"{STRICT}16 bits become 8")
    assert str(found["clear.png"]).endswith(f"{STRICT}alpha (the image is laid on white)")
    assert set(errors(changed(config, format="jpeg")).values()) == {None}, "without strict it is noted at the writing"
    assert set(errors(changed(config, strict=True)).values()) == {None}, "its own format holds all of it"


def test_a_side_beyond_the_format_is_refused_in_the_plan(config: RunConfig, ray_cluster: None) -> None:
    found = errors(changed(config, format="webp"))
    assert found["line.png"] == "WEBP holds at most 16,383 pixels a side; the image has 16,384"
    assert found["plain.png"] is None


def test_a_later_start_that_is_strict_refuses_before_it_solves(
    config: RunConfig, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine = start_quarantine()
    jpeg = changed(config, format="jpeg")
    plan = planned(WorkerSettings.of(jpeg, "cpu", 1, lpips=False), quarantine)
    plan = plan.filter(pa.compute.is_in(plan["key"], pa.array(["deep.png"])))
    work = WorkerSettings.of(changed(jpeg, strict=True), "cpu", 1, lpips=False)
    actor = SolverActor(work, quarantine)

    def never(jobs: list[Any], on_step: Any) -> list[Any]:
        assert not jobs
        return []

    monkeypatch.setattr(actor.restorer, "solve", never)
    (done,) = actor(load(rows_of(plan, index(plan), work), work, quarantine)).to_pylist()
    assert STRICT in done["rows"][0]["error"]
    assert done["images"] == [None]
