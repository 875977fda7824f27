"""run.json: what belongs to a run, and what is refused with the difference named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline import run_record
from flashray.pipeline.archive import read_archive
from flashray.pipeline.plan import PLAN, read_plans, write_plan
from flashray.pipeline.run_config import RunConfig, flatten
from flashray.pipeline.run_folder import RUN_FOLDER
from flashray.recipe import DegradationConfig, FusionConfig, SolverConfig
from flashray.severity import Start
from tests.support.runs import changed, config_of, record

WEIGHTS = {"prior": "aaaa", "severity_encoder": "bbbb"}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    for name in ("a.png", "b.png"):
        (tmp_path / "archive").mkdir(exist_ok=True)
        (tmp_path / "archive" / name).write_bytes(b"x")
    return config_of(str(tmp_path / "archive"), str(tmp_path / "run"), measurement="simulated")


def open_run(config: RunConfig, weights: dict[str, Any] = WEIGHTS, **values: Any) -> dict[str, Any]:
    found, listing = run_record.identity(config, weights), read_archive(config).images
    old = run_record.examine(config, found, listing, **values)
    return run_record.open_record(config, old, found, listing)


def test_a_run_is_opened_again(config: RunConfig) -> None:
    first = open_run(config)
    assert first["archive"]["images"] == 2
    assert first["fingerprint"]["weights.prior"] == "aaaa"
    assert first["versions"]["torch"]
    assert open_run(config) == first == run_record.read_record(config.io.output)


def test_grain_counts_where_the_fusion_is_learned(config: RunConfig) -> None:
    assert "recipe.fusion.grain" not in run_record.identity(config, WEIGHTS)
    photo = changed(config, degradation=DegradationConfig("photo"), fusion=FusionConfig("learned", grain=2.0))
    assert run_record.identity(photo, WEIGHTS)["recipe.fusion.grain"] == 2.0
    open_run(photo)
    with pytest.raises(ConfigError, match=r"--fusion.grain is 2.0 there and 3.0 here"):
        open_run(changed(photo, fusion=FusionConfig("learned")))
    kept = run_record.read_record(photo.io.output)
    assert kept is not None
    del kept["fingerprint"]["recipe.fusion.grain"]  # as a run from before there was a residual
    run_record.write_record(photo.io.output, kept)
    open_run(photo)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, ["--seed is 0 there and 1 here", "--overwrite run"]),
        ({"solver": SolverConfig(steps=10, settings={"dc_step": 2.0})}, ["solver.steps", "solver.settings.dc_step"]),
        ({"start": Start(mode="full")}, ["--start.mode is 'flash' there and 'full' here"]),
        ({"slots": 3}, ["slots"]),
    ],
)
def test_another_configuration_is_refused(config: RunConfig, change: dict[str, Any], words: list[str]) -> None:
    open_run(config)
    with pytest.raises(ConfigError) as caught:
        open_run(changed(config, **change))
    assert all(word in str(caught.value) for word in [*words, "another output"])


def test_other_weights_are_refused(config: RunConfig) -> None:
    open_run(config)
    with pytest.raises(ConfigError, match=r"weights\.severity_encoder is 'bbbb' there and 'cccc' here"):
        open_run(config, WEIGHTS | {"severity_encoder": "cccc"})


def test_what_changes_no_byte_may_change(config: RunConfig) -> None:
    first = open_run(config)
    free = changed(config, solver_actors=3, severity_actors=2, plan_only=True, retry_failed=True)
    free = changed(free, budget_seconds=60.0)  # kept in an entry of its own
    assert open_run(free) == first, "a quote leaves it as it is"


def test_a_start_that_works_records_what_it_changed(config: RunConfig) -> None:
    first = open_run(config)
    now = open_run(changed(config, max_megapixels=178.0, limit=2, prior="/moved"))
    assert now == run_record.read_record(config.io.output)
    assert now["fingerprint"] == first["fingerprint"]
    before, after = (flatten(one["config"]) for one in (first, now))
    different = {name: value for name, value in after.items() if before[name] != value}
    assert different == {"io.max_megapixels": 178.0, "policy.limit": 2, "recipe.prior": "/moved"}


def opened_and_planned(config: RunConfig) -> dict[str, Any]:
    opened = open_run(config)
    write_plan(config.io.output, 0, PLAN.empty_table())
    return opened


def test_before_its_plan_a_run_takes_any_archive(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    open_run(config)
    (Path(config.io.archive) / "a.png").write_bytes(b"longer")
    (Path(config.io.archive) / "b.png").unlink()
    kept = record(config.io.output) / "severity" / "00" / "00000000.parquet"
    kept.parent.mkdir(parents=True)
    kept.touch()
    assert open_run(config)["archive"]["images"] == 1
    assert "listed anew" in caplog.text
    assert not kept.exists(), "σ̂ of the file that was there before"


def test_an_archive_that_only_grew_before_its_plan_keeps_what_was_estimated(config: RunConfig) -> None:
    open_run(config)
    kept = record(config.io.output) / "severity" / "00" / "00000000.parquet"
    kept.parent.mkdir(parents=True)
    kept.touch()
    (Path(config.io.archive) / "c.png").write_bytes(b"x")
    assert open_run(config)["archive"]["images"] == 3
    assert kept.exists()


def test_another_archive_is_refused_by_its_keys(config: RunConfig) -> None:
    opened_and_planned(config)
    (Path(config.io.archive) / "c d.png").write_bytes(b"x")
    (Path(config.io.archive) / "a.png").write_bytes(b"longer")
    (Path(config.io.archive) / "b.png").unlink()
    with pytest.raises(ConfigError) as caught:
        open_run(config)
    message = str(caught.value)
    assert all(word in message for word in ("1 added (c d.png)", "1 removed (b.png)", "1 changed (a.png)"))


def test_another_manifest_is_no_other_archive(config: RunConfig, tmp_path: Path) -> None:
    opened_and_planned(config)
    (tmp_path / "m.csv").write_text("key,blur_std\na.png,1\n")
    with pytest.raises(ConfigError, match=r"^1 images \(a.png\) have other parameters.*Give that run's manifest again"):
        open_run(changed(config, manifest=str(tmp_path / "m.csv")))
    (Path(config.io.archive) / "a.png").write_bytes(b"longer")
    with pytest.raises(ConfigError, match=r"^archive .* 1 changed \(a.png\)"):
        open_run(changed(config, manifest=str(tmp_path / "m.csv")))


def test_an_archive_may_grow(config: RunConfig, caplog: pytest.LogCaptureFixture) -> None:
    before = opened_and_planned(config)["archive"]["images"]
    (Path(config.io.archive) / "c d.png").write_bytes(b"x")
    assert open_run(config)["archive"]["images"] == before + 1
    assert "1 images are new in the archive, and are restored too" in caplog.text
    caplog.clear()
    open_run(config)
    assert "new in the archive" not in caplog.text


def test_a_limit_of_an_earlier_version_is_no_difference(config: RunConfig) -> None:
    open_run(config)
    path = record(config.io.output) / "run.json"
    there = json.loads(path.read_text())
    there["fingerprint"]["policy.limit"] = 1
    path.write_text(json.dumps(there))
    open_run(config)


def test_an_image_that_failed_may_leave_with_a_retry(config: RunConfig) -> None:
    opened_and_planned(config)
    (Path(config.io.archive) / "a.png").unlink()
    with pytest.raises(ConfigError, match=r"1 removed \(a.png\).*--retry-failed.* lets go of those that were removed"):
        open_run(config, failed={"a.png"})
    open_run(changed(config, retry_failed=True), failed={"a.png"})
    open_run(config)


def test_a_retry_takes_up_repaired_images(config: RunConfig) -> None:
    opened_and_planned(config)
    (Path(config.io.archive) / "a.png").write_bytes(b"repaired")
    with pytest.raises(ConfigError, match="--retry-failed"):
        open_run(config, failed={"a.png"})
    with pytest.raises(ConfigError, match="changed"):
        open_run(changed(config, retry_failed=True), failed={"b.png"})
    open_run(changed(config, retry_failed=True), failed={"a.png"})
    open_run(config)  # the repaired archive is the run's own from now on


def test_a_retry_keeps_estimates_of_the_same_files_alone(config: RunConfig) -> None:
    """A retry that was stopped before its plan leaves them, and the image may be replaced once more."""
    opened_and_planned(config)
    retry = changed(config, retry_failed=True)
    kept = record(config.io.output) / "severity" / "01" / "00000000.parquet"
    for data, there in ((b"x", True), (b"repaired", False)):
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        (Path(config.io.archive) / "a.png").write_bytes(data)
        open_run(retry, failed={"a.png"})
        assert kept.exists() is there


def test_a_store_without_conditional_puts_is_for_a_single_writer(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_run(config)["single_writer"] is False
    assert "conditional puts" not in caplog.text
    monkeypatch.setattr(storage, "creates_if_absent", lambda uri: False)
    other = changed(config, output=config.io.output + "2")
    for _ in range(2):  # the next start says it again
        caplog.clear()
        assert open_run(other)["single_writer"] is True
        assert "only one works on this output" in caplog.text


def test_a_damaged_run_json_is_named(config: RunConfig) -> None:
    open_run(config)
    (record(config.io.output) / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        open_run(config)
    (record(config.io.output) / "run.json").write_text("[]")
    with pytest.raises(ConfigError, match="is not the record of a run"):
        open_run(config)


def test_an_output_that_cannot_be_used_is_named(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"output {output} cannot be"):
            open_run(changed(config, output=str(output)))


def test_a_run_is_erased_and_what_else_lies_there_stays(config: RunConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run_record.erase(str(run), ["a.png"])  # nothing there
    open_run(config)
    names = ("commits/u0.parquet", "drivers/000001.json", "summary.json", "plan/plan-00.parquet")
    files = [*(f"{RUN_FOLDER}/{name}" for name in names), "a.png", "deep/b.png", "notes.txt", "summary.json"]
    for name in files:
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"x")
    run_record.erase(str(run), ["a.png", "deep/b.png"])
    left = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    assert sorted(left) == [f"{RUN_FOLDER}/drivers/000001.json", "notes.txt", "summary.json"]
    run_record.erase(str(run), [], "drivers")
    assert (run / RUN_FOLDER / "drivers" / "000001.json").exists(), "there is no run to erase any more"


def test_an_erasure_that_is_cut_short_leaves_plans_that_can_be_read(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, delete = config.io.output, storage.delete
    opened_and_planned(config)
    for attempt in range(1, 12):
        write_plan(output, attempt, PLAN.empty_table())
    left: list[int] = []

    def counted(uri: str) -> None:
        delete(uri)
        left.append(len(read_plans(output)))

    monkeypatch.setattr(storage, "delete", counted)
    run_record.erase(output, [])
    assert [*dict.fromkeys(left)] == [*range(12, -1, -1)]


def test_an_output_with_other_files_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "summary.json").write_text("mine")
    with pytest.raises(ConfigError, match=r"is not empty \('summary.json' is there\) and holds no run"):
        open_run(config)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["summary.json"]


def test_a_run_of_the_old_layout_is_refused(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "archive.parquet"):
        (tmp_path / "run" / name).write_text("{}")
    with pytest.raises(ConfigError, match=r"in an older layout .* choose another output"):
        open_run(config)
