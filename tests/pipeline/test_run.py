"""Whole runs on a tiny archive: from a folder of photos to reconstructions, commits and a summary."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import flashray
from flashray.cli import main
from flashray.errors import ConfigError, FlashrayError
from flashray.images import encode_png, open_image, to_uint8
from flashray.pipeline import run
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.verify import verify
from flashray.recipe import DegradationConfig, SolverConfig
from flashray.severity import Start
from flashray.tracking.tracking_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.image_files import colour_photo, deep, grey_photo, phone_exif, saved, saved_tiff
from tests.support.models import SIDE
from tests.support.profiles import display_p3
from tests.support.runs import MakeConfig, changed, flat_numbers, record, restored, summary_of


@pytest.fixture(scope="module")
def done(make: MakeConfig, archive: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run, tracked."""
    output = tmp_path_factory.mktemp("runs") / "done"
    tracking = TrackingConfig(tracking_uri=f"sqlite:///{output.parent}/mlflow.db", patience=60)
    config = make(archive, output, tracking=tracking)
    assert restore_archive(config) == 0
    return config


def times(output: Path) -> dict[str, int]:
    """When each restored image was written: the time of modification is its original's."""
    return {name: (output / name).stat().st_ctime_ns for name in restored(output)}


def snapshot(output: str) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in Path(output).rglob("*") if path.is_file()}


def test_every_image_is_restored_once(done: RunConfig, archive: Path) -> None:
    keys = sorted(path.relative_to(archive).as_posix() for path in archive.rglob("*.*"))
    state = RunStatus.read(done.io.output)
    assert sorted(state.plan["key"].to_pylist()) == sorted(state.results["key"].to_pylist()) == keys
    assert set(restored(done.io.output)) == set(keys)
    for data in restored(done.io.output).values():
        assert open_image(data).pixels.shape == (3, SIDE, SIDE)


def test_each_image_takes_its_own_steps(done: RunConfig) -> None:
    state = RunStatus.read(done.io.output)
    plan = {row["key"]: row for row in state.plan.to_pylist()}
    assert len({row["start_step"] for row in plan.values()}) > 1  # otherwise the fixture shows nothing
    for row in state.results.to_pylist():
        assert row["nfe"] == row["start_step"] == plan[row["key"]]["start_step"]
        assert row["sigma_hat"] == plan[row["key"]]["sigma_hat"]
        assert row["sigma_true"] > 0
        assert 0.3 <= json.loads(plan[row["key"]]["parameters"])["blur_std"] <= 3.0


def test_commits_hold_the_hash_and_the_scores(done: RunConfig, archive: Path) -> None:
    import hashlib

    from flashray.metrics import psnr

    for row in RunStatus.read(done.io.output).results.to_pylist():
        data = restored(done.io.output)[row["key"]]
        assert hashlib.sha256(data).hexdigest() == row["sha256"]
        clean = open_image((archive / row["key"]).read_bytes()).pixels
        assert row["psnr"] == pytest.approx(psnr(open_image(data).pixels[None], clean[None]).item(), abs=0.05)
        assert row["measurement_psnr"] > row["estimate_psnr"]  # the tiny prior knows nothing
        assert row["lpips"] is None


def test_the_summary_and_tracking_say_the_same(done: RunConfig) -> None:
    from mlflow import MlflowClient

    found = summary_of(done.io.output)
    assert (found["images"], found["restored"], found["failed"]) == (10, 10, 0)
    nfe = RunStatus.read(done.io.output).results["nfe"].to_pylist()
    assert found["mean_nfe"] == pytest.approx(sum(nfe) / 10)
    assert found["nfe_saved"] == pytest.approx(1 - sum(nfe) / 200)
    assert found["wall_seconds"] > 0
    assert found["psnr_interval"][0] <= found["psnr"] <= found["psnr_interval"][1]
    found_record = json.loads((record(done.io.output) / "run.json").read_text())
    run = MlflowClient(tracking_uri=found_record["mlflow"]["tracking_uri"]).get_run(found_record["mlflow"]["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == flat_numbers(found)
    assert len(run.data.metrics) > 20
    assert run.data.metrics["nfe_max"] == max(nfe)
    assert run.data.params["recipe.solver.steps"] == "20"
    assert run.data.params["weights.prior"] == found_record["fingerprint"]["weights.prior"]


def test_the_contact_sheet_is_a_picture(done: RunConfig) -> None:
    sheet = open_image((record(done.io.output) / "contact_sheet.png").read_bytes()).pixels
    assert sheet.shape[1] > 10 * SIDE
    assert sheet.shape[2] > 4 * SIDE


def test_a_second_start_does_nothing(done: RunConfig, capsys: pytest.CaptureFixture[str]) -> None:
    before = snapshot(done.io.output)
    assert restore_archive(done) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert snapshot(done.io.output) == before


def test_a_second_start_tells_what_tracking_lacks(done: RunConfig, tmp_path: Path) -> None:
    """A driver that was killed between its summary and its last word, where there was no server all the time."""
    from mlflow import MlflowClient

    output, there = tmp_path / "run", f"sqlite:///{tmp_path}/mlflow.db"
    shutil.copytree(done.io.output, output)
    (record(output) / "tracking" / "sent.json").unlink()
    *_, end = sorted((record(output) / "tracking").glob("0*.json"))
    assert json.loads(end.read_text())["kind"] == "end"
    end.unlink()
    tracking = dataclasses.replace(done.tracking, tracking_uri=there)
    assert restore_archive(changed(done, output=str(output), tracking=tracking)) == 0
    tracked = json.loads((record(output) / "run.json").read_text())["mlflow"]
    run = MlflowClient(tracking_uri=there).get_run(tracked["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.metrics == flat_numbers(summary_of(output))
    kept = {file.path for file in MlflowClient(tracking_uri=there).list_artifacts(tracked["run_id"])}
    assert kept == {"config.yaml", "contact_sheet.png", "report.html", "summary.json"}
    with tempfile.TemporaryDirectory() as folder:
        page = MlflowClient(tracking_uri=there).download_artifacts(tracked["run_id"], "report.html", folder)
        assert Path(page).read_bytes() == (output / "report.html").read_bytes()


def test_a_quote_then_the_run_gives_the_same_bytes(
    done: RunConfig, make: MakeConfig, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make(archive, tmp_path / "again")
    assert restore_archive(changed(config, plan_only=True)) == 0
    quote = capsys.readouterr().out
    state = RunStatus.read(config.io.output)
    total = sum(state.plan["nfe"].to_pylist())
    assert "10 images, 0 of them unreadable" in quote
    assert f"total {total:,.0f} window evaluations" in quote
    assert f"{1 - total / 200:.1%} saved" in quote
    assert not restored(config.io.output)
    assert not (record(config.io.output) / "commits").exists()

    plan = snapshot(str(record(config.io.output) / "plan"))
    assert restore_archive(config) == 0
    assert snapshot(str(record(config.io.output) / "plan")) == plan  # the plan is never made twice
    assert restored(config.io.output) == restored(done.io.output)
    assert RunStatus.read(config.io.output).plan == RunStatus.read(done.io.output).plan
    drop = ["seconds"]
    assert RunStatus.read(config.io.output).results.drop(drop) == RunStatus.read(done.io.output).results.drop(drop)


def test_resume_does_what_is_missing_and_nothing_else(done: RunConfig, tmp_path: Path) -> None:
    output = tmp_path / "resumed"
    shutil.copytree(done.io.output, output)
    config = changed(done, output=str(output), tracking=TrackingConfig(enabled=False))
    units = sorted((record(output) / "commits").iterdir())
    lost = set(pq.read_table(units[0])["key"].to_pylist())
    units[0].unlink()
    kept = times(output)
    assert restore_archive(config) == 0
    assert restored(output) == restored(done.io.output)
    now = times(output)
    assert {name for name in now if now[name] != kept[name]} == lost


def test_an_output_of_another_configuration_is_refused(done: RunConfig, tiny_models: TinyModels) -> None:
    before = snapshot(done.io.output)
    with pytest.raises(ConfigError, match="seed is 0 there and 7 here"):
        restore_archive(changed(done, seed=7))
    with pytest.raises(ConfigError, match=r"start\.mode is 'flash' there and 'full' here"):
        restore_archive(changed(done, start=Start(mode="full")))
    assert snapshot(done.io.output) == before


def test_a_run_that_is_overwritten_by_name_begins_anew(done: RunConfig, tmp_path: Path) -> None:
    output = tmp_path / "over"
    shutil.copytree(done.io.output, output)
    config = changed(done, output=str(output), seed=7, plan_only=True)
    assert restore_archive(changed(config, overwrite="over")) == 0
    assert not restored(output)
    assert not RunStatus.read(str(output)).units
    assert json.loads((record(output) / "run.json").read_text())["config"]["recipe"]["seed"] == 7
    assert restore_archive(config) == 0  # it goes on without the flag


def test_an_overwriting_run_that_ends_before_its_summary_goes_on(
    done: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command must not delete what it has restored."""
    output = tmp_path / "over"
    shutil.copytree(done.io.output, output)
    (record(output) / "summary.json").unlink()
    path = record(output) / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"overwriting": True}))
    config = changed(done, output=str(output), overwrite="over", tracking=TrackingConfig(enabled=False))
    before = times(output)
    with monkeypatch.context() as patched:
        patched.setattr(run, "write_pages", lambda *_: sys.exit(137))
        with pytest.raises(SystemExit):
            restore_archive(config)
    assert restore_archive(config) == 0
    assert times(output) == before
    assert "overwriting" not in json.loads(path.read_text())


def test_broken_images_are_rows_and_can_be_retried(
    make: MakeConfig, photo: torch.Tensor, tmp_path: Path, caplog: pytest.LogCaptureFixture
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
        assert restore_archive(config) == 1
    assert "3 of 8 images failed" in caplog.text
    assert "--retry-failed" in caplog.text
    found = summary_of(config.io.output)
    assert (found["images"], found["restored"], found["failed"]) == (8, 5, 3)
    assert {row["key"] for row in found["failures"]} == {"cut short.png", "empty.jpg", "text.png"}
    assert "the file is empty" in {row["key"]: row["error"] for row in found["failures"]}["empty.jpg"]
    rows = {row["key"]: row for row in RunStatus.read(config.io.output).results.to_pylist()}
    assert rows["0.png"]["measurement_psnr"] == float("inf")  # the reference itself
    assert rows["0.png"]["psnr"] > 0
    assert rows["4.png"]["psnr"] is None  # it has no reference
    assert rows["4.png"]["status"] == "ok"
    assert restore_archive(config) == 1  # nothing to do, and the failures are still there

    first = restored(config.io.output)
    for name in ("cut short.png", "text.png"):
        (archive / name).write_bytes(good[3])
    with pytest.raises(ConfigError, match="--retry-failed"):
        restore_archive(config)
    assert restore_archive(changed(config, retry_failed=True)) == 1
    found = summary_of(config.io.output)
    assert (found["restored"], found["failed"]) == (7, 1)
    assert [row["key"] for row in found["failures"]] == ["empty.jpg"]
    second = restored(config.io.output)
    assert set(second) - set(first) == {"cut short.png", "text.png"}
    assert all(second[name] == data for name, data in first.items())


def test_full_chains_on_photos_of_other_sizes(make: MakeConfig, photo: torch.Tensor, tmp_path: Path) -> None:
    archive = tmp_path / "large"
    archive.mkdir()
    (archive / "wide.png").write_bytes(encode_png(photo[:, :64, :96]))
    config = make(archive, tmp_path / "run", start=Start(mode="full"))
    assert restore_archive(config) == 0
    (row,) = RunStatus.read(config.io.output).plan.to_pylist()
    assert (row["width"], row["height"], row["nfe"], row["sigma_hat"]) == (96, 64, 20, None)
    (result,) = RunStatus.read(config.io.output).results.to_pylist()
    assert result["nfe"] == 20
    assert result["estimate_psnr"] is None
    assert result["measurement_psnr"] > 0


def test_a_chain_longer_than_the_priors_is_refused(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="21"):
        restore_archive(make(archive, tmp_path / "run", solver=SolverConfig(steps=21)))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("empty", [True, False])
def test_missing_and_empty_archives(make: MakeConfig, tmp_path: Path, empty: bool) -> None:
    if empty:
        (tmp_path / "archive").mkdir()
    with pytest.raises(ConfigError, match="holds no images" if empty else "does not exist"):
        restore_archive(make(tmp_path / "archive", tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_what_stops_a_run_is_named_and_the_run_can_go_on(done: RunConfig, tmp_path: Path) -> None:
    output = tmp_path / "stopped"
    shutil.copytree(done.io.output, output)
    for name in restored(output):
        (output / name).unlink()
    for name in ("commits", "summary.json"):
        path = record(output) / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (output / "más fotos").rmdir()
    (output / "más fotos").write_text("in the way")
    config = changed(done, output=str(output), tracking=TrackingConfig(enabled=False))
    with pytest.raises(FlashrayError, match="the same command goes on") as caught:
        restore_archive(config)
    assert "más fotos" in str(caught.value)
    (output / "más fotos").unlink()
    assert restore_archive(config) == 0
    assert restored(output) == restored(done.io.output)


def test_one_image_is_an_archive(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    source = archive / "crop 3.png"
    config = make(source, tmp_path / "run")
    assert restore_archive(config) == 0
    assert list(restored(tmp_path / "run")) == ["crop 3.png"]
    with pytest.raises(ConfigError, match="lies inside the output"):
        make(source, archive)  # it would be replaced by its restoration


def test_an_archive_grows_and_what_failed_may_leave(
    make: MakeConfig, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command restores what is new, and nothing twice; a trial with a limit grows into the whole."""
    folder, output = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    for name in ("crop 0.png", "crop 1.png"):
        shutil.copy(archive / name, folder / name)
    assert restore_archive(make(folder, output, metrics=[], limit=1)) == 0
    assert list(restored(output)) == ["crop 0.png"]
    before = (output / "crop 0.png").stat().st_ino
    config = make(folder, output, metrics=[])
    assert restore_archive(config) == 0
    shutil.copy(archive / "crop 3.png", folder / "album 2.png")
    (folder / "broken.png").write_bytes(b"no image")
    assert restore_archive(config) == 1
    assert sorted(restored(output)) == ["album 2.png", "crop 0.png", "crop 1.png"]
    assert (output / "crop 0.png").stat().st_ino == before
    assert (record(output) / "problems.csv").read_text().splitlines()[1].startswith('"broken.png","failed",')
    assert verify(str(output)).failed == ["broken.png"]

    (folder / "broken.png").unlink()
    with pytest.raises(ConfigError, match="lets go of those that were removed"):
        restore_archive(config)
    assert restore_archive(make(folder, output, metrics=[], retry_failed=True)) == 0
    assert restore_archive(config) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert verify(str(output)).complete
    assert summary_of(output)["images"] == 3
    assert restore_archive(make(folder, output, metrics=[], limit=1)) == 0  # what was taken stays
    assert verify(str(output)).complete


def test_a_budget_is_for_all_images(make: MakeConfig, archive: Path, tmp_path: Path) -> None:
    """Planned again where the archive has grown; refused where a part is done with the starts of another share."""
    folder, output = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    shutil.copy(archive / "crop 0.png", folder / "0.png")
    budget: dict[str, Any] = {"metrics": [], "budget_seconds": 300.0}
    assert restore_archive(make(folder, output, plan_only=True, **budget)) == 0
    shutil.copy(archive / "crop 1.png", folder / "1.png")
    assert restore_archive(make(folder, output, **budget)) == 0
    status = RunStatus.read(str(output))
    assert sorted(status.plan["key"].to_pylist()) == ["0.png", "1.png"]
    assert {unit[:2] for unit in status.plan["unit_id"].to_pylist()} == {"01"}  # one plan has both
    assert verify(str(output)).complete
    shutil.copy(archive / "crop 2.png", folder / "2.png")
    with pytest.raises(ConfigError, match="1 images are new: restore them to another output"):
        restore_archive(make(folder, output, **budget))


def test_a_run_that_let_go_and_was_killed_ends_with_the_next_start(
    make: MakeConfig, archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, output = tmp_path / "photos", tmp_path / "run"
    folder.mkdir()
    shutil.copy(archive / "crop 0.png", folder / "0.png")
    (folder / "broken.png").write_bytes(b"no image")
    config = make(folder, output, metrics=[], retry_failed=True)
    assert restore_archive(config) == 1
    (folder / "broken.png").unlink()
    assert restore_archive(make(folder, output, metrics=[], retry_failed=True, plan_only=True)) == 0
    assert summary_of(output)["failed"] == 1  # a quote changes nothing
    with monkeypatch.context() as killed:
        killed.setattr(run, "write_pages", lambda *_: sys.exit(9))
        with pytest.raises(SystemExit):
            restore_archive(config)
    assert restore_archive(make(folder, output, metrics=[])) == 0
    assert summary_of(output)["failed"] == 0


def test_an_output_is_an_archive_without_its_records(done: RunConfig, make: MakeConfig, tmp_path: Path) -> None:
    from flashray.pipeline.archive import read_archive

    listing = read_archive(make(Path(done.io.output), tmp_path / "again")).images
    assert sorted(listing["key"].to_pylist()) == sorted(restored(done.io.output))


def test_another_format_and_the_job_in_python(
    done: RunConfig, tiny_models: TinyModels, archive: Path, tmp_path: Path, ray_cluster: None
) -> None:
    import flashray

    recipe = tmp_path / "tiny.yaml"
    settings = {"name": "latent_dps", "steps": 20, "settings": {"dc_step": 0.1}}
    start = {"severity_encoder": tiny_models.encoder}
    recipe.write_text(json.dumps({"prior": tiny_models.prior, "start": start, "solver": settings}))
    options: dict[str, Any] = {"measurement": "simulated", "metrics": [], "limit": 2, "tracking.enabled": False}
    found = flashray.restore(str(archive), str(tmp_path / "run"), recipe=str(recipe), format="jpeg", **options)
    assert (found["restored"], found["failed"]) == (2, 0)
    images = restored(tmp_path / "run")
    assert sorted(images) == ["crop 0.png.jpg", "crop 1.png.jpg"]
    assert all(data.startswith(b"\xff\xd8") for data in images.values())
    # a notebook restores the same image to the same pixels, but for what half precision makes of another batch
    restorer = flashray.load(str(recipe), "cpu", measurement="simulated")
    out = restorer(archive / "crop 0.png", keys=["crop 0.png"])
    job = open_image(restored(done.io.output)["crop 0.png"]).pixels
    assert out.images[0] is not None
    assert (to_uint8(out.images[0]).float() - to_uint8(job).float()).abs().mean() < 0.5


def test_the_same_kinds_of_files_and_all_others(
    make: MakeConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, output = tmp_path / "archive", tmp_path / "run"
    (folder / "notes").mkdir(parents=True)
    files = {
        "grey.png": saved(grey_photo(40, 48)),
        "phone.jpg": saved(colour_photo(40, 48), "JPEG", exif=b"Exif\0\0" + phone_exif(), icc_profile=display_p3()),
        "scan.tif": saved_tiff(deep(colour_photo(SIDE, SIDE)), photometric="rgb"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    (folder / "notes" / "album.txt").write_bytes(b"1987")
    os.mkfifo(folder / "pipe.png")
    config = make(folder, output, metrics=[])
    assert restore_archive(config) == 1
    assert "--copy-others" in capsys.readouterr().out
    found = summary_of(output)
    assert (found["restored"], found["failed"], found["other_files"], found["copied_files"]) == (3, 1, 1, 0)
    assert found["failures"][0]["key"] == "pipe.png"
    for name, data in files.items():
        before, after = open_image(data), open_image(restored(output)[name])
        assert (after.format, after.kind, after.depth, after.icc) == (
            *(before.format, before.kind, before.depth, before.icc),
        )
        assert (output / name).stat().st_mtime_ns == (folder / name).stat().st_mtime_ns
    assert open_image(restored(output)["phone.jpg"]).exif is not None
    run_id = json.loads((record(output) / "run.json").read_text())["fingerprint"]["sha256"]
    assert run_id.encode() in restored(output)["grey.png"]

    assert restore_archive(changed(config, copy_others=True)) == 1  # a later start copies, and restores nothing again
    assert restored(output)["notes/album.txt"] == b"1987"
    assert summary_of(output)["copied_files"] == 1
    assert verify(str(output)).sound
    assert restore_archive(changed(config, copy_others=True)) == 1
    assert "nothing to do" in capsys.readouterr().out
    assert restore_archive(changed(config, overwrite="run", plan_only=True)) == 0
    assert restored(output) == {}
    assert not (output / "report.html").exists()


def test_the_page_shows_the_run(done: RunConfig, make: MakeConfig, tmp_path: Path) -> None:
    from flashray.pipeline.archive import read_archive

    page = (Path(done.io.output) / "report.html").read_text()
    for key in restored(done.io.output):
        assert key in page
    assert page.count('<figure id="p') == 10
    assert "10 of 10" in page
    assert "× noise" in page
    assert verify(done.io.output).complete, "the page is the run's own"
    assert not read_archive(make(Path(done.io.output), tmp_path / "again")).others


def test_a_report_is_made_anew(done: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "reported"
    shutil.copytree(done.io.output, output)
    (record(output) / "contact_sheet.png").unlink()
    page = (output / "report.html").read_text()
    (output / "report.html").unlink()
    assert main(["report", str(output)]) == 0
    assert "10 of 10 images restored" in capsys.readouterr().out
    assert (record(output) / "contact_sheet.png").read_bytes() == (
        record(done.io.output) / "contact_sheet.png"
    ).read_bytes()
    assert (output / "report.html").read_text() == page.replace(done.io.output, str(output)).replace(
        "Restored: done", "Restored: reported"
    )


def test_a_report_of_a_run_under_way_shows_what_is_there(
    done: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "reported"
    shutil.copytree(done.io.output, output)
    (record(output) / "summary.json").unlink()
    gone = sorted((record(output) / "commits").iterdir())[0]
    left = 10 - pq.read_table(gone).num_rows
    gone.unlink()
    assert main(["report", str(output)]) == 0
    assert f"{left} of 10 images restored" in capsys.readouterr().out
    page = (output / "report.html").read_text()
    assert f"{10 - left} images are pending" in page
    assert page.count('<figure id="p') == left
    assert page.count("<td>pending</td>") == 10 - left
    for path in (record(output) / "commits").iterdir():
        path.unlink()
    assert main(["report", str(output)]) == 0
    assert "<figure" not in (output / "report.html").read_text()


def test_a_run_without_a_recipe_is_for_unknown_damage(photo: torch.Tensor, tmp_path: Path, ray_cluster: None) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_png(photo[:, 50:125, 180:271]))
    output = tmp_path / "out"
    assert main(["restore", str(tmp_path / "in"), str(output), "--device", "cpu", "--tracking.enabled", "false"]) == 0
    state = RunStatus.read(str(output))
    (planned,), (row,) = state.plan.to_pylist(), state.results.to_pylist()
    assert (row["status"], planned["parameters"], planned["noise_std"]) == ("ok", "{}", 0)
    assert planned["sigma_hat"] > 0
    assert open_image((output / "a.png").read_bytes()).pixels.shape == (3, 75, 91)
    config = json.loads((record(output) / "run.json").read_text())["config"]
    assert config["recipe"]["degradation"]["name"] == "photo"
    assert config["recipe"]["fusion"]["name"] == "learned"


def test_photos_that_nothing_would_change_are_given_back_for_nothing(
    photo: torch.Tensor, tmp_path: Path, ray_cluster: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No weight is above the threshold; of the same photos with references ẑ is scored, so they go the usual way."""
    (tmp_path / "in").mkdir()
    for n, name in enumerate(("a.png", "b.jpg")):
        (tmp_path / "in" / name).write_bytes(encode_png(photo[:, 50 : 125 + n, 180:271]))
    usual = ["--device", "cpu", "--tracking.enabled", "false", "--fusion.threshold", "0.5", "--metrics", "[psnr]"]
    usual += ["--fusion.grain", "100"]
    for output, more, touched in (("kept", [], False), ("scored", ["--references", str(tmp_path / "in")], None)):
        folder = tmp_path / output
        assert main(["restore", str(tmp_path / "in"), str(folder), *usual, *more]) == 0
        state = RunStatus.read(str(folder))
        assert state.plan["touched"].to_pylist() == state.plan["residual"].to_pylist() == [touched] * 2
        assert state.plan["sigma_hat"].to_numpy().min() > 0
        rows = state.results.to_pylist()
        assert [(row["status"], row["nfe"], row["unchanged"]) for row in rows] == [("ok", 0.0, True)] * 2
        assert all((row["psnr"] is None) == (touched is False) for row in rows)
        assert all((row["estimate_psnr"] is None) == (touched is False) for row in rows)
        for name in ("a.png", "b.jpg"):
            assert (folder / name).read_bytes() == (tmp_path / "in" / name).read_bytes()


def test_the_residual_alone_changes_a_photo_without_the_denoiser(
    photo: torch.Tensor, tmp_path: Path, ray_cluster: None
) -> None:
    noise = torch.randn((3, 75, 91), generator=torch.Generator().manual_seed(0))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encode_png((photo[:, 50:125, 180:271] + 0.07 * noise).clamp(-1, 1)))
    output = tmp_path / "out"
    usual = ["--device", "cpu", "--tracking.enabled", "false", "--fusion.threshold", "0.5", "--fusion.grain", "0.5"]
    assert main(["restore", str(tmp_path / "in"), str(output), *usual]) == 0
    state = RunStatus.read(str(output))
    (planned,), (row,) = state.plan.to_pylist(), state.results.to_pylist()
    assert (planned["touched"], planned["residual"]) == (False, True)
    assert (row["status"], row["nfe"], row["unchanged"]) == ("ok", 0.0, False)
    expected = flashray.load("photo", device="cpu", precision="float32", fusion={"threshold": 0.5, "grain": 0.5})
    (image,) = expected(tmp_path / "in" / "a.png", keys=["a.png"]).images
    assert image is not None
    assert (open_image((output / "a.png").read_bytes()).pixels - image).abs().max() <= 1 / 127.5
