"""Whole runs on a tiny archive: from a folder of photos to reconstructions, commits and a summary."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from flashray.errors import ConfigError, FlashrayError
from flashray.images import decode_image, encode_png
from flashray.pipeline.run import reconstruct
from flashray.pipeline.run_config import (
    DegradationConfig,
    ReconstructConfig,
    SolverConfig,
    StartConfig,
    TrackingConfig,
    check,
)
from flashray.pipeline.run_status import State
from tests.conftest import TinyModels
from tests.support.models import SIDE

Make = Callable[..., ReconstructConfig]


@pytest.fixture(scope="module")
def make(tiny_models: TinyModels, ray_cluster: None) -> Make:
    """Configurations of the tiny models: small batches and units, so that there are several of each."""

    def make(archive: Path, output: Path, **values: Any) -> ReconstructConfig:
        settings: dict[str, Any] = {
            "measurement": "simulated",
            "prior": tiny_models.prior,
            "start": StartConfig(severity_encoder=tiny_models.encoder),
            "solver": SolverConfig(steps=20, settings={"dc_step": 0.1}),
            "metrics": ["psnr", "ssim"],
            "slots": 2,
            "severity_batch": 4,
            "unit_images": 3,
            "mlflow": TrackingConfig(enabled=False),
        }
        return check(ReconstructConfig(str(archive), str(output), **settings | values))

    return make


@pytest.fixture(scope="module")
def done(make: Make, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> ReconstructConfig:
    """A finished run, tracked."""
    output = tmp_path_factory.mktemp("runs") / "done"
    tracking = TrackingConfig(tracking_uri=f"sqlite:///{output.parent}/mlflow.db", patience=60)
    config = make(archive, output, mlflow=tracking)
    assert reconstruct(config) == 0
    return config


def reconstructions(output: str) -> dict[str, bytes]:
    root = Path(output) / "reconstructions"
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def snapshot(output: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(output).rglob("*") if path.is_file()}


def summary(config: ReconstructConfig) -> dict[str, Any]:
    return json.loads((Path(config.output) / "summary.json").read_text())


def test_every_image_is_restored_once(done: ReconstructConfig, archive: Path) -> None:
    keys = sorted(path.relative_to(archive).as_posix() for path in archive.rglob("*.*"))
    state = State.read(done.output)
    assert sorted(state.plan["key"].to_pylist()) == sorted(state.results["key"].to_pylist()) == keys
    assert set(reconstructions(done.output)) == {f"{key}.png" for key in keys}
    for data in reconstructions(done.output).values():
        assert decode_image(data).shape == (3, SIDE, SIDE)


def test_each_image_takes_its_own_steps(done: ReconstructConfig) -> None:
    state = State.read(done.output)
    plan = {row["key"]: row for row in state.plan.to_pylist()}
    assert len({row["start_step"] for row in plan.values()}) > 1  # otherwise the fixture shows nothing
    for row in state.results.to_pylist():
        assert row["nfe"] == row["start_step"] == plan[row["key"]]["start_step"]
        assert row["sigma_hat"] == plan[row["key"]]["sigma_hat"]
        assert row["sigma_true"] > 0
        assert 0.3 <= json.loads(plan[row["key"]]["parameters"])["blur_std"] <= 3.0


def test_commits_hold_the_hash_and_the_scores(done: ReconstructConfig, archive: Path) -> None:
    import hashlib

    from flashray.metrics import psnr

    for row in State.read(done.output).results.to_pylist():
        data = reconstructions(done.output)[row["key"] + ".png"]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        clean = decode_image((archive / row["key"]).read_bytes())
        assert row["psnr"] == pytest.approx(psnr(decode_image(data)[None], clean[None]).item(), abs=0.05)
        assert row["measurement_psnr"] > row["estimate_psnr"]  # the tiny prior knows nothing
        assert row["lpips"] is None


def flat_numbers(found: dict[str, Any]) -> dict[str, float]:
    """Every number of a summary.json but lists of failures and histograms, by the names that they have in tracking."""
    flat = {name: value for name, value in found.items() if isinstance(value, int | float)}
    for name, value in found.items():
        if name.endswith("_interval") and value is not None:
            flat |= {f"{name}_low": value[0], f"{name}_high": value[1]}
    for of, one in found["distributions"].items():
        flat |= {f"{of}_{which}": value for which, value in one.items() if isinstance(value, float)}
    return flat


def test_the_summary_and_tracking_say_the_same(done: ReconstructConfig) -> None:
    from mlflow import MlflowClient

    found = summary(done)
    assert (found["images"], found["restored"], found["failed"]) == (10, 10, 0)
    nfe = State.read(done.output).results["nfe"].to_pylist()
    assert found["mean_nfe"] == pytest.approx(sum(nfe) / 10)
    assert found["nfe_saved"] == pytest.approx(1 - sum(nfe) / 200)
    assert found["wall_seconds"] > 0
    assert found["psnr_interval"][0] <= found["psnr"] <= found["psnr_interval"][1]
    record = json.loads((Path(done.output) / "run.json").read_text())
    run = MlflowClient(tracking_uri=record["mlflow"]["tracking_uri"]).get_run(record["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == flat_numbers(found)
    assert len(run.data.metrics) > 20
    assert run.data.metrics["nfe_max"] == max(nfe)
    assert run.data.params["solver.steps"] == "20"
    assert run.data.params["weights.prior"] == record["fingerprint"]["weights.prior"]


def test_the_contact_sheet_is_a_picture(done: ReconstructConfig) -> None:
    sheet = decode_image((Path(done.output) / "contact_sheet.png").read_bytes())
    assert sheet.shape[1] > 10 * SIDE
    assert sheet.shape[2] > 4 * SIDE


def test_a_second_start_does_nothing(done: ReconstructConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(done.output)
    assert reconstruct(done) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert snapshot(done.output) == before


def test_a_second_start_tells_what_tracking_lacks(done: ReconstructConfig, tmp_path: Path) -> None:
    """A driver that was killed between its summary and its last word, where there was no server all the time."""
    from mlflow import MlflowClient

    output, there = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copytree(done.output, output)
    (output / "tracking" / "sent.json").unlink()
    *_, end = sorted((output / "tracking").glob("0*.json"))
    assert json.loads(end.read_text())["kind"] == "end"
    end.unlink()
    mlflow = dataclasses.replace(done.mlflow, tracking_uri=there)
    assert reconstruct(dataclasses.replace(done, output=str(output), mlflow=mlflow)) == 0
    record = json.loads((output / "run.json").read_text())["mlflow"]
    run = MlflowClient(tracking_uri=there).get_run(record["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == flat_numbers(json.loads((output / "summary.json").read_text()))
    kept = {file.path for file in MlflowClient(tracking_uri=there).list_artifacts(record["run_id"])}
    assert kept == {"config.yaml", "contact_sheet.png", "summary.json"}


def test_a_quote_then_the_run_gives_the_same_bytes(
    done: ReconstructConfig, make: Make, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(archive, tmp_path / "again")
    assert reconstruct(dataclasses.replace(config, plan_only=True)) == 0
    quote = capsys.readouterr().out
    state = State.read(config.output)
    total = sum(state.plan["nfe"].to_pylist())
    assert "10 images, 0 of them unreadable" in quote
    assert f"total {total:,} NFE" in quote
    assert f"{1 - total / 200:.1%} saved" in quote
    assert not reconstructions(config.output)
    assert not (Path(config.output) / "commits").exists()

    plan = snapshot(str(Path(config.output) / "plan"))
    assert reconstruct(config) == 0
    assert snapshot(str(Path(config.output) / "plan")) == plan  # the plan is never made twice
    assert reconstructions(config.output) == reconstructions(done.output)
    assert State.read(config.output).plan == State.read(done.output).plan
    drop = ["seconds"]
    assert State.read(config.output).results.drop(drop) == State.read(done.output).results.drop(drop)


def test_resume_does_what_is_missing_and_nothing_else(done: ReconstructConfig, tmp_path: Path) -> None:
    output = tmp_path / "resumed"
    shutil.copytree(done.output, output)
    config = dataclasses.replace(done, output=str(output), mlflow=TrackingConfig(enabled=False))
    units = sorted((output / "commits").iterdir())
    lost = set(pq.read_table(units[0])["key"].to_pylist())
    units[0].unlink()
    kept = snapshot(str(output / "reconstructions"))
    assert reconstruct(config) == 0
    assert reconstructions(str(output)) == reconstructions(done.output)
    now = snapshot(str(output / "reconstructions"))
    root = output / "reconstructions"
    rewritten = {
        Path(path).relative_to(root).as_posix().removesuffix(".png") for path in now if now[path] != kept[path]
    }
    assert rewritten == lost


def test_an_output_of_another_configuration_is_refused(done: ReconstructConfig, tiny_models: TinyModels) -> None:
    before = snapshot(done.output)
    with pytest.raises(ConfigError, match="seed is 0 there and 7 here"):
        reconstruct(dataclasses.replace(done, seed=7))
    with pytest.raises(ConfigError, match=r"start\.mode is 'flash' there and 'full' here"):
        reconstruct(dataclasses.replace(done, start=StartConfig(mode="full")))
    assert snapshot(done.output) == before


def test_a_run_that_is_overwritten_by_name_begins_anew(done: ReconstructConfig, tmp_path: Path) -> None:
    output = tmp_path / "over"
    shutil.copytree(done.output, output)
    config = dataclasses.replace(done, output=str(output), seed=7, plan_only=True)
    assert reconstruct(dataclasses.replace(config, overwrite="over")) == 0
    assert not reconstructions(str(output))
    assert not State.read(str(output)).units
    assert json.loads((output / "run.json").read_text())["config"]["seed"] == 7
    assert reconstruct(config) == 0  # it goes on without the flag


def test_broken_images_are_rows_and_can_be_retried(
    make: Make, photo: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    archive, references = tmp_path / "degraded", tmp_path / "clean"
    for folder in (archive, references):
        folder.mkdir()
    good = [encode_png(photo[:, 200 : 200 + SIDE, 50 * i : 50 * i + SIDE]) for i in range(5)]
    for i, data in enumerate(good):
        (archive / f"{i}.png").write_bytes(data)
    for i in range(4):
        (references / f"{i}.png").write_bytes(good[i])
    (archive / "cut short.png").write_bytes(good[0][: len(good[0]) // 2])
    (archive / "empty.jpg").write_bytes(b"")
    (archive / "text.png").write_text("not an image")
    fixed = DegradationConfig(settings={"std": [1.0, 1.0]})
    config = make(
        archive, tmp_path / "run", measurement="observed", degradation=fixed, references=str(references), fit="resize"
    )
    with caplog.at_level(logging.ERROR):
        assert reconstruct(config) == 1
    assert "3 of 8 images failed" in caplog.text
    assert "--retry-failed" in caplog.text
    found = summary(config)
    assert (found["images"], found["restored"], found["failed"]) == (8, 5, 3)
    assert {row["key"] for row in found["failures"]} == {"cut short.png", "empty.jpg", "text.png"}
    assert "the file is empty" in {row["key"]: row["error"] for row in found["failures"]}["empty.jpg"]
    rows = {row["key"]: row for row in State.read(config.output).results.to_pylist()}
    assert rows["0.png"]["measurement_psnr"] == float("inf")  # the reference itself
    assert rows["0.png"]["psnr"] > 0
    assert rows["4.png"]["psnr"] is None  # it has no reference
    assert rows["4.png"]["status"] == "ok"
    assert reconstruct(config) == 1  # nothing to do, and the failures are still there

    first = reconstructions(config.output)
    for name in ("cut short.png", "text.png"):
        (archive / name).write_bytes(good[3])
    with pytest.raises(ConfigError, match="--retry-failed"):
        reconstruct(config)
    assert reconstruct(dataclasses.replace(config, retry_failed=True)) == 1
    found = summary(config)
    assert (found["restored"], found["failed"]) == (7, 1)
    assert [row["key"] for row in found["failures"]] == ["empty.jpg"]
    second = reconstructions(config.output)
    assert set(second) - set(first) == {"cut short.png.png", "text.png.png"}
    assert all(second[name] == data for name, data in first.items())


def test_full_chains_on_photos_of_other_sizes(make: Make, photo: torch.Tensor, tmp_path: Path) -> None:
    archive = tmp_path / "large"
    archive.mkdir()
    (archive / "wide.png").write_bytes(encode_png(photo[:, :64, :96]))
    config = make(archive, tmp_path / "run", start=StartConfig(mode="full"))
    assert reconstruct(config) == 0
    (row,) = State.read(config.output).plan.to_pylist()
    assert (row["width"], row["height"], row["nfe"], row["sigma_hat"]) == (96, 64, 20, None)
    (result,) = State.read(config.output).results.to_pylist()
    assert result["nfe"] == 20
    assert result["estimate_psnr"] is None
    assert result["measurement_psnr"] > 0


def test_a_chain_longer_than_the_priors_is_refused(make: Make, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="21"):
        reconstruct(make(archive, tmp_path / "run", solver=SolverConfig(steps=21)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_missing_and_empty_archives(make: Make, tmp_path: Path, empty: bool) -> None:
    if empty:
        (tmp_path / "archive").mkdir()
    with pytest.raises(ConfigError, match="holds no images" if empty else "does not exist"):
        reconstruct(make(tmp_path / "archive", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_stops_a_run_is_named_and_the_run_can_go_on(
    done: ReconstructConfig, make: Make, archive: Path, tmp_path: Path
) -> None:
    output = tmp_path / "stopped"
    shutil.copytree(done.output, output, ignore=shutil.ignore_patterns("reconstructions", "commits", "summary.json"))
    (output / "reconstructions").write_text("in the way")
    config = dataclasses.replace(done, output=str(output), mlflow=TrackingConfig(enabled=False))
    with pytest.raises(FlashrayError, match="the same command goes on") as caught:
        reconstruct(config)
    assert "reconstructions" in str(caught.value)
    os.remove(output / "reconstructions")
    assert reconstruct(config) == 0
    assert reconstructions(str(output)) == reconstructions(done.output)
