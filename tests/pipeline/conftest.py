"""What a run's stages are tried with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flashray.pipeline.archive import list_archive
from flashray.pipeline.load import load
from flashray.pipeline.plan import Severity, chunks, finish
from flashray.pipeline.run_config import ReconstructConfig, SolverConfig, StartConfig
from flashray.pipeline.worker_settings import Work
from tests.conftest import TinyModels
from tests.support.models import SIDE


@pytest.fixture
def work(tiny_models: TinyModels, archive: Path, tmp_path: Path) -> Work:
    config = ReconstructConfig(
        str(archive),
        str(tmp_path / "run"),
        measurement="simulated",
        prior=tiny_models.prior,
        start=StartConfig(severity_encoder=tiny_models.encoder),
        solver=SolverConfig(steps=20, settings={"dc_step": 0.1}),
        metrics=["psnr"],
        slots=3,
        severity_batch=4,
        unit_images=4,
    )
    return Work.of(config, "cpu", 1, SIDE, lpips=False)


def planned(work: Work, board: Any) -> pa.Table:
    """The plan of the work's archive, by the very stages of the pass."""
    actor = Severity(work, board)
    todo = chunks(list_archive(work.config), work.config.severity_batch)
    found = [actor(load(todo.slice(i, 1), work, board)) for i in range(len(todo))]
    return finish(pa.concat_tables(found), actor.bench.schedule, work, attempt=0)
