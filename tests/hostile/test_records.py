"""A run's own records: damaged, deleted, replaced, foreign; and restored files that are no longer what they were."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flashray import storage
from flashray.cli import main
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline import attempt_markers
from flashray.pipeline import run as run_module
from flashray.pipeline.clean import clean
from flashray.pipeline.lease import held
from flashray.pipeline.open_run import Run, open_run
from flashray.pipeline.others import read_others
from flashray.pipeline.plan import SEVERITY, write_plan
from flashray.pipeline.run import restore_archive
from flashray.pipeline.run_config import RunConfig
from flashray.pipeline.run_folder import RUN_FOLDER
from flashray.pipeline.run_status import RunStatus
from flashray.pipeline.run_tables import read_table
from flashray.recipe import SolverConfig
from flashray.severity import Start
from flashray.tracking import TrackingConfig
from tests.conftest import TinyModels
from tests.support.runs import changed, config_of
from tests.support.small_runs import commit, planned

Begin = Callable[[RunConfig], None]


@pytest.fixture
def config(tiny_models: TinyModels, archive: Path, tmp_path: Path) -> RunConfig:
    return config_of(
        archive,
        tmp_path / "run",
        measurement="simulated",
        prior=tiny_models.prior,
        start=Start(severity_encoder=tiny_models.encoder),
        solver=SolverConfig(steps=20, settings={"dc_step": 0.1}),
        metrics=["psnr"],
        slots=2,
        tracking=TrackingConfig(enabled=False),
    )


def keys_of(config: RunConfig) -> list[str]:
    keys: list[str] = open_run(config).listing["key"].to_pylist()
    return keys


def plan_and_commit(config: RunConfig) -> list[str]:
    """The records of a run whose images are all restored, without restoring any; its keys."""
    run = open_run(config)
    keys: list[str] = run.listing["key"].to_pylist()
    with held(run.output):
        run.open_record()
    out = Path(run.output)
    units = [f"00-{i // 4:08d}" for i in range(len(keys))]
    write_plan(run.output, 0, planned(keys, units))
    for unit in sorted(set(units)):
        commit(out, unit, [key for key, of in zip(keys, units, strict=True) if of == unit])
    (out / RUN_FOLDER / "summary.json").write_text("{}")
    return keys


def files(folder: str) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in Path(folder).rglob("*.*")}


def test_row_03_nothing_is_written_before_the_lease_is_held(config: RunConfig, tmp_path: Path) -> None:
    with held(config.io.output):
        before = files(config.io.output)
        with pytest.raises(FlashrayError, match="another driver is at work"):
            restore_archive(changed(config, limit=3))
        with pytest.raises(FlashrayError, match="another driver is at work"):
            restore_archive(changed(config, overwrite="run"))
        assert files(config.io.output) == before


def test_row_03_an_output_that_takes_no_lease_is_an_error_of_the_command(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(uri: str, data: bytes) -> bool:
        raise PermissionError(13, "Permission denied", uri)

    with monkeypatch.context() as patched:
        patched.setattr(storage, "create_if_absent", refuse)
        with pytest.raises(ConfigError, match=f"output {config.io.output} cannot be written to: .*Permission denied"):
            restore_archive(config)
    plan_and_commit(config)
    (Path(config.io.output) / RUN_FOLDER / "summary.json").unlink()
    monkeypatch.setattr(storage, "create_if_absent", refuse)
    with pytest.raises(FlashrayError, match=r"the run stopped: .*Permission denied") as caught:
        restore_archive(config)
    assert not isinstance(caught.value, ConfigError), "it wrote there before"


def test_row_03_what_another_driver_did_before_the_lease_is_seen(config: RunConfig) -> None:
    late = open_run(config)
    assert len(late.unplanned) == 10
    plan_and_commit(config)
    with held(config.io.output):
        late.open_record()
    assert len(late.unplanned) == 0
    assert not late.needs_cluster
    with pytest.raises(FlashrayError, match="another driver has planned"):
        write_plan(config.io.output, 0, planned(["other.png"], ["00-00000000"]))


def test_row_03_a_quote_finishes_no_run(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another start plans before this one has the lease, and finds that no image can be read."""
    other = open_run(config)

    @contextmanager
    def held_late(output: str) -> Iterator[None]:
        with held(output):
            other.open_record()
            write_plan(output, 0, planned(other.listing["key"].to_pylist(), [None] * len(other.listing)))
        with held(output):
            yield

    monkeypatch.setattr(run_module, "held", held_late)
    assert restore_archive(changed(config, plan_only=True)) == 0
    assert "10 images, 10 of them unreadable" in capsys.readouterr().out
    assert not files(config.io.output).keys() & {f"{RUN_FOLDER}/summary.json", "report.html"}


def test_row_08_a_plan_that_was_deleted(config: RunConfig, tmp_path: Path) -> None:
    keys = plan_and_commit(config)
    out, plan = Path(config.io.output), Path(config.io.output) / RUN_FOLDER / "plan" / "plan-00.parquet"
    kept = tmp_path / "kept.parquet"
    shutil.move(plan, kept)
    before = files(config.io.output)
    for refused in (lambda: open_run(config), lambda: clean(str(out)), lambda: RunStatus.read(str(out))):
        with pytest.raises(ConfigError, match=r"belong to no plan .*Put it back"):
            refused()
    assert main(["verify", str(out)]) == 2
    # made again with other actors: the same names of units, other images in them
    write_plan(str(out), 0, planned(keys, [f"00-{i // 3:08d}" for i in range(len(keys))]))
    assert main(["verify", str(out), "--clean"]) == 2
    with pytest.raises(ConfigError, match="have other images than the plan gives their units"):
        open_run(config)
    assert {name: data for name, data in files(config.io.output).items() if name in before} == before
    shutil.copy(kept, plan)
    assert open_run(config).nothing_to_do


def test_row_08_a_file_with_the_bytes_of_a_commit_is_never_deleted(config: RunConfig) -> None:
    """It was restored, then taken up again, and failed that time."""
    keys = plan_and_commit(config)
    write_plan(config.io.output, 1, planned(keys[:2], ["01-00000000", "01-00000000"]))
    commit(Path(config.io.output), "01-00000000", keys[:2], failed=tuple(keys[:2]))
    (Path(config.io.output) / keys[1]).write_bytes(b"half of it")
    assert [Path(uri).name for uri in clean(config.io.output)] == [keys[1]]
    assert (Path(config.io.output) / keys[0]).exists()


def test_row_10_missing_and_damaged_images_are_made_again(
    config: RunConfig, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    keys = plan_and_commit(config)
    assert open_run(config).nothing_to_do
    out = Path(config.io.output)
    (out / keys[0]).unlink()
    (out / keys[4]).write_bytes(b"")
    (out / keys[7]).write_bytes(keys[7].encode()[::-1])  # as many bytes
    run = open_run(config)
    assert run.unplanned["key"].to_pylist() == [keys[0], keys[4]]
    assert not run.nothing_to_do
    assert f"1 restored images are missing and are made again: {keys[0]}" in caplog.text
    assert open_run(changed(config, verify=True)).unplanned["key"].to_pylist() == [keys[0], keys[4], keys[7]]
    assert open_run(changed(config, plan_only=True)).nothing_to_do
    assert main(["verify", str(out)]) == 1
    said = capsys.readouterr().out
    assert "the same command with --verify makes missing and changed images again" in said
    # what is made again replaces the old rows
    again = [keys[0], keys[4], keys[7]]
    write_plan(str(out), 1, planned(again, ["01-00000000"] * 3))
    assert RunStatus.read(str(out)).pending["key"].to_pylist() == again
    commit(out, "01-00000000", again)
    assert main(["verify", str(out)]) == 0


BAD_PARQUET = {
    "empty": b"",
    "cut short": b"PAR1" + b"\0" * 40,
    "of text": b"not a table at all, but long enough to be read as one",
    "of another table": None,
}


@pytest.mark.parametrize("how", BAD_PARQUET)
@pytest.mark.parametrize("what", ["plan/plan-00.parquet", "commits/00-00000001.parquet", "archive.parquet"])
def test_row_19_a_damaged_record_is_named_with_the_remedy(
    config: RunConfig, what: str, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plan_and_commit(config)
    path = Path(config.io.output) / RUN_FOLDER / what
    data = BAD_PARQUET[how]
    if data is None:
        pq.write_table(pa.table({"number": [1, 2]}), path)
    else:
        path.write_bytes(data)
    with pytest.raises(ConfigError, match=rf"{what} is damaged.*; (put it back|delete it)"):
        open_run(config)
    if what != "archive.parquet":
        assert main(["verify", config.io.output]) == 2
        assert "is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["severity/00/00000000.parquet", "others.parquet"])
def test_row_19_damaged_records_of_less_weight(config: RunConfig, what: str) -> None:
    path = Path(config.io.output) / RUN_FOLDER / what
    path.parent.mkdir(parents=True)
    path.write_bytes(b"PAR1")
    refused = [lambda: read_table(str(path), SEVERITY, "delete it")]
    if what == "others.parquet":
        refused.append(lambda: read_others(config.io.output))
    for read in refused:
        with pytest.raises(ConfigError, match="is damaged"):
            read()


def test_row_19_files_of_others_are_passed_over(config: RunConfig) -> None:
    plan_and_commit(config)
    folder = Path(config.io.output) / RUN_FOLDER
    for name in ("plan/.DS_Store", "commits/.DS_Store", "commits/._00-00000000.parquet", "plan/old.txt", "Thumbs.db"):
        (folder / name).write_bytes(b"\0\1\2")
    for name in ("drivers/.DS_Store", "drivers/zzz", "attempts/.DS_Store", "attempts/00-00000000.old"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"\0\1\2")
    assert open_run(config).nothing_to_do
    with held(config.io.output):
        assert attempt_markers.read(config.io.output, {"00-00000000"}) == {}
    assert main(["verify", config.io.output]) == 0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        "{}",
        '{"created": 1}',
        '{"created": "now"}',
        '{"created": "now", "config": {}, "fingerprint": {}, "archive": {}}',
        '{"created": "now", "config": {"io": {"format": "exe"}}, "fingerprint": {}, "archive": {"images": 1}}',
        '{"created": "now", "config": {"io": {"format": []}}, "fingerprint": {}, "archive": {"images": 1}}',
        '{"created": "now", "config": {"io": {"format": "png"}}, "fingerprint": {}, "archive": {"images": "1"}}',
        '{"created": "now", "config": [], "fingerprint": {}, "archive": {"images": 1}}',
        "\ufeff{}",
        "[" * 100_000,
        '{"a": ' * 100_000,
    ],
)
def test_row_19_a_run_json_that_is_no_run(config: RunConfig, text: str) -> None:
    plan_and_commit(config)
    (Path(config.io.output) / RUN_FOLDER / "run.json").write_text(text)
    with pytest.raises(ConfigError, match=r"run\.json is (damaged|not the record of a run)"):
        open_run(config)
    for verb in ("verify", "report", "replay", "compare"):
        assert main([verb, config.io.output]) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"kind": "start"}'])
def test_row_19_damaged_events_of_tracking(config: RunConfig, text: str) -> None:
    plan_and_commit(config)
    folder = Path(config.io.output) / RUN_FOLDER / "tracking"
    folder.mkdir()
    (folder / "000001.json").write_text(text)
    assert open_run(config).nothing_to_do
    assert main(["replay", config.io.output]) == 2


@pytest.mark.parametrize("text", ["", "{", "[]", '{"number": 1}', '{"number": "x", "host": 3}', "\xff"])
def test_row_19_a_damaged_lease_is_named(config: RunConfig, text: str) -> None:
    folder = Path(config.io.output) / RUN_FOLDER / "drivers"
    folder.mkdir(parents=True)
    (folder / "000001.json").write_text(text)
    with (
        pytest.raises(FlashrayError, match=r"000001\.json is damaged.*delete it if no driver"),
        held(config.io.output),
    ):
        pass


def test_row_20_a_run_json_that_was_deleted(config: RunConfig) -> None:
    plan_and_commit(config)
    (Path(config.io.output) / RUN_FOLDER / "run.json").unlink()
    for asked in (config, changed(config, seed=7)):
        with pytest.raises(ConfigError, match=r"run\.json is gone, and plan or commits"):
            open_run(asked)
    # without a single restored image, too
    for path in Path(config.io.output).rglob("*.[pP][nN][gG]"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"run\.json is gone"):
        open_run(config)


def test_row_20_a_start_that_died_before_its_run_json_is_no_run(config: RunConfig) -> None:
    with held(config.io.output):
        storage.put_bytes(f"{config.io.output}/{RUN_FOLDER}/archive.parquet", b"half")
    run: Run = open_run(config)
    with held(config.io.output):
        run.open_record()
    found: dict[str, Any] = json.loads((Path(config.io.output) / RUN_FOLDER / "run.json").read_bytes())
    assert found["archive"]["images"] == 10
