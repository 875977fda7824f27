"""What a run's stages are tried with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from flashray.pipeline.archive import read_archive
from flashray.pipeline.load import load
from flashray.pipeline.plan import SeverityActor, chunks, finish_plan
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.recipe import SolverConfig
from flashray.severity import Start
from tests.conftest import TinyModels
from tests.support.runs import config_of


@pytest.fixture
def work(tiny_models: TinyModels, archive: Path, tmp_path: Path) -> WorkerSettings:
    config = config_of(
        str(archive),
        str(tmp_path / "run"),
        measurement="simulated",
        prior=tiny_models.prior,
        start=Start(severity_encoder=tiny_models.encoder),
        solver=SolverConfig(steps=20, settings={"dc_step": 0.1}),
        metrics=["psnr"],
        slots=3,
        severity_batch=4,
        unit_images=4,
    )
    return WorkerSettings.of(config, "cpu", 1, lpips=False)


def planned(work: WorkerSettings, quarantine: Any) -> pa.Table:
    """The plan of the work's archive, by the very stages of the pass."""
    actor = SeverityActor(work, quarantine)
    todo = chunks(read_archive(work.config).images, work.config.resources.severity_batch)
    found = [actor(load(todo.slice(i, 1), work, quarantine)) for i in range(len(todo))]
    return finish_plan(pa.concat_tables(found), actor.restorer.schedule, work.config, attempt=0)
