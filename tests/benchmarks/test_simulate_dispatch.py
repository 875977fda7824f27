"""Simulated dispatch: its page, its figure, and a run's own plan as its archive."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks.simulate_dispatch import POOLS, DispatchConfig, simulate_dispatch, start_steps
from flashray.errors import ConfigError


def test_the_page_and_its_figure(tmp_path: Path) -> None:
    config = DispatchConfig(str(tmp_path), images=20_000, many=16, many_images=2000)
    simulate_dispatch(config)
    page = (tmp_path / "dispatch.md").read_text()
    rows = [line.split("|")[1:-1] for line in page.splitlines() if line.startswith("| smaller units at the end | 1")]
    assert len(rows) == 1
    assert len(rows[0]) == 1 + len(POOLS)
    assert all(1 <= float(cell) < 1.1 for cell in rows[0][1:])
    assert "## 16 actors, 2,000 images" in page
    assert Image.open(tmp_path / "dispatch.png").size[0] > 1000


def test_start_steps_come_from_a_runs_plan(tmp_path: Path) -> None:
    (tmp_path / "plan").mkdir()
    pq.write_table(pa.table({"nfe": pa.array([3, 5, None], pa.int32())}), tmp_path / "plan" / "plan-00.parquet")
    steps = start_steps(DispatchConfig(plan=str(tmp_path / "plan")), 100)
    assert np.unique(steps).tolist() == [3, 5]
    with pytest.raises(ConfigError, match="holds no plan"):
        start_steps(DispatchConfig(plan=str(tmp_path)), 100)
