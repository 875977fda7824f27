"""Parameters that nobody gave: the severity encoder estimates them, and plan, quote and page say so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest
import torch

from flashray.errors import ConfigError
from flashray.pipeline.archive import read_archive
from flashray.pipeline.plan import finish_plan, write_plan
from flashray.pipeline.quarantine import start_quarantine
from flashray.pipeline.run_page import _images, _scores
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.summary import of_estimates, quote, remarks, summarise
from flashray.pipeline.worker_settings import WorkerSettings
from flashray.prior import load_prior
from flashray.recipe import DegradationConfig
from flashray.severity import SeverityEncoder, Start
from tests.conftest import TinyModels
from tests.pipeline.conftest import planned
from tests.support.plans import found, schedule
from tests.support.plans import work as work_of
from tests.support.runs import changed

SAID = "parameters of 3 images are the severity encoder's estimates; rows of a manifest would replace them"


@pytest.fixture
def encoder(tiny_models: TinyModels, tmp_path: Path) -> str:
    """An encoder that predicts the blur and the noise too."""
    torch.manual_seed(0)
    ranges = {"blur_std": [0.5, 2.5], "noise_std": [0.0, 0.2]}
    settings: dict[str, Any] = {"widths": (16, 24), "blocks": (1, 1), "parameter_ranges": ranges}
    one = SeverityEncoder.from_prior(load_prior(tiny_models.prior), "gaussian_blur", {}, [0.0, 0.2], **settings)
    one.save_pretrained(tmp_path / "predicts")
    return str(tmp_path / "predicts")


def test_the_plan_marks_what_no_manifest_gave(
    work: WorkerSettings, encoder: str, tmp_path: Path, ray_cluster: None
) -> None:
    keys = read_archive(work.config).images["key"].to_pylist()
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("key,blur_std,noise_std\n" + "".join(f"{key},1.5,0.05\n" for key in keys[3:]))
    config = changed(
        work.config,
        measurement="observed",
        manifest=str(manifest),
        degradation=DegradationConfig(settings={"std": [0.3, 3.0]}, noise_std=[0.0, 0.2]),
        start=Start(severity_encoder=encoder),
    )
    plan = planned(dataclasses.replace(work, config=config), start_quarantine())
    rows = {row["key"]: row for row in plan.to_pylist()}
    assert {key for key, row in rows.items() if row["estimated"]} == set(keys[:3])
    for key in keys:
        blur = json.loads(rows[key]["parameters"])["blur_std"]
        assert 0.5 <= blur <= 2.5
        assert (blur, rows[key]["noise_std"]) == (1.5, 0.05) or key in keys[:3]


def test_an_encoder_that_predicts_them_all_needs_no_manifest(
    work: WorkerSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranged = DegradationConfig(settings={"std": [0.3, 3.0]}, noise_std=[0.0, 0.2])
    config = changed(work.config, measurement="observed", degradation=ranged)
    known = ("blur_std", "noise_std")
    assert read_archive(config, known).images["given"].null_count == 10
    with pytest.raises(ConfigError, match=r"leaves blur_std, noise_std open.*--manifest"):
        read_archive(config, ("blur_std",))
    manifest = tmp_path / "manifest.csv"
    manifest.write_text("key,blur_std\ncrop 0.png,1.5\n")
    config = changed(config, manifest=str(manifest))
    assert read_archive(config, known).images["noise_std"].null_count == 10
    assert read_archive(config, known).images["given"].null_count == 9
    assert "no row for 9 images" in caplog.text
    with pytest.raises(ConfigError, match="has no column noise_std"):
        read_archive(config, ("blur_std",))
    manifest.write_text("name,blur_std\na.png,1.5\n")
    with pytest.raises(ConfigError, match="has no column key"):
        read_archive(config, known)


def test_the_quote_the_last_message_and_the_page_say_it(tmp_path: Path) -> None:
    severities = found([0.1, 0.2, None, 0.3, 0.4])
    marks = pc.is_in(severities["index"], severities["index"].slice(0, 4)).to_pylist()
    marks[2] = None
    column = severities.schema.get_field_index("estimated")
    severities = severities.set_column(column, severities.schema.field(column), [marks])
    write_plan(str(tmp_path), 0, finish_plan(severities, schedule(), work_of().config, attempt=0))
    status = RunStatus.read(str(tmp_path))
    assert SAID in quote(status, 100).splitlines()
    summary = summarise(status, 100, {})
    assert summary["estimated"] == 3
    counts = dict.fromkeys(("other_files", "copied_files"), 0) | {"unreadable_folders": []}
    assert remarks(summary | counts) == [SAID]
    table = _images(status, set())
    names = [column.name for column in table.columns]
    assert [row[names.index("Parameters")] for row in table.rows].count("estimated") == 3
    scores = _scores(summary | {"psnr": 20.0})
    assert scores is not None
    assert scores.note.endswith("The parameters of 3 images are estimates.")


def test_where_all_is_given_nothing_is_said(tmp_path: Path) -> None:
    write_plan(str(tmp_path), 0, finish_plan(found([0.1, None]), schedule(), work_of().config, attempt=0))
    status = RunStatus.read(str(tmp_path))
    assert of_estimates(summarise(status, 100, {})["estimated"]) == []
    assert "estimates" not in quote(status, 100)
    assert "Parameters" not in [column.name for column in _images(status, set()).columns]
