"""run.json: what belongs to a run, and what is refused with the difference named."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from flashray import storage
from flashray.errors import ConfigError
from flashray.pipeline import run_record as rundir
from flashray.pipeline.archive import list_archive
from flashray.pipeline.run_config import ReconstructConfig, SolverConfig, StartConfig

WEIGHTS = {"prior": "aaaa", "severity_encoder": "bbbb"}


@pytest.fixture
def config(tmp_path: Path) -> ReconstructConfig:
    for name in ("a.png", "b.png"):
        (tmp_path / "archive").mkdir(exist_ok=True)
        (tmp_path / "archive" / name).write_bytes(b"x")
    return ReconstructConfig(str(tmp_path / "archive"), str(tmp_path / "run"), measurement="simulated")


def open_run(config: ReconstructConfig, weights: dict[str, Any] = WEIGHTS, **values: Any) -> dict[str, Any]:
    found = rundir.identity(config, weights)
    return rundir.open_run(config, found, list_archive(config), **values)


def test_a_run_is_opened_again(config: ReconstructConfig) -> None:
    first = open_run(config)
    assert first["archive"]["images"] == 2
    assert first["fingerprint"]["weights.prior"] == "aaaa"
    assert first["versions"]["torch"]
    assert open_run(config) == first == rundir.read_record(config.output)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seed": 1}, ["seed is 0 there and 1 here"]),
        ({"solver": SolverConfig(steps=10, settings={"dc_step": 2.0})}, ["solver.steps", "solver.settings.dc_step"]),
        ({"start": StartConfig(mode="full")}, ["start.mode is 'flash' there and 'full' here"]),
        ({"limit": 1}, ["limit is None there and 1 here"]),
        ({"slots": 3}, ["slots"]),
    ],
)
def test_another_configuration_is_refused(config: ReconstructConfig, change: dict[str, Any], words: list[str]) -> None:
    open_run(config)
    with pytest.raises(ConfigError) as caught:
        open_run(dataclasses.replace(config, **change))
    assert all(word in str(caught.value) for word in [*words, "--output"])


def test_other_weights_are_refused(config: ReconstructConfig) -> None:
    open_run(config)
    with pytest.raises(ConfigError, match=r"weights\.severity_encoder is 'bbbb' there and 'cccc' here"):
        open_run(config, WEIGHTS | {"severity_encoder": "cccc"})


def test_what_changes_no_byte_may_change(config: ReconstructConfig) -> None:
    first = open_run(config)
    free = dataclasses.replace(config, solver_actors=3, severity_actors=2, plan_only=True, retry_failed=True)
    free = dataclasses.replace(free, budget_seconds=60.0)  # kept in an entry of its own
    assert open_run(free) == first


def test_another_archive_is_refused_by_its_keys(config: ReconstructConfig) -> None:
    open_run(config)
    (Path(config.archive) / "c d.png").write_bytes(b"x")
    (Path(config.archive) / "a.png").write_bytes(b"longer")
    (Path(config.archive) / "b.png").unlink()
    with pytest.raises(ConfigError) as caught:
        open_run(config)
    message = str(caught.value)
    assert all(word in message for word in ("1 added (c d.png)", "1 removed (b.png)", "1 changed (a.png)"))


def test_a_retry_takes_up_repaired_images(config: ReconstructConfig) -> None:
    open_run(config)
    (Path(config.archive) / "a.png").write_bytes(b"repaired")
    with pytest.raises(ConfigError, match="--retry-failed"):
        open_run(config, failed={"a.png"})
    with pytest.raises(ConfigError, match="changed"):
        open_run(dataclasses.replace(config, retry_failed=True), failed={"b.png"})
    open_run(dataclasses.replace(config, retry_failed=True), failed={"a.png"})
    open_run(config)  # the repaired archive is the run's own from now on


def test_a_store_without_conditional_puts_is_for_a_single_writer(
    config: ReconstructConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_run(config)["single_writer"] is False
    assert "conditional puts" not in caplog.text
    monkeypatch.setattr(storage, "creates_if_absent", lambda uri: False)
    other = dataclasses.replace(config, output=config.output + "2")
    for _ in range(2):  # the next start says it again
        caplog.clear()
        assert open_run(other)["single_writer"] is True
        assert "only one works on this output" in caplog.text


def test_a_damaged_run_json_is_named(config: ReconstructConfig) -> None:
    open_run(config)
    (Path(config.output) / "run.json").write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        open_run(config)


def test_an_output_that_cannot_be_used_is_named(config: ReconstructConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigError, match=f"output {output} cannot be"):
            open_run(dataclasses.replace(config, output=str(output)))


def test_a_run_is_erased_and_what_else_lies_there_stays(config: ReconstructConfig, tmp_path: Path) -> None:
    run = tmp_path / "run"
    rundir.erase(str(run))  # nothing there
    open_run(config)
    for name in ("commits/u0.parquet", "reconstructions/a.png.png", "drivers/000001.json", "summary.json", "notes.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_bytes(b"x")
    rundir.erase(str(run))
    left = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    assert sorted(left) == ["drivers/000001.json", "notes.txt"]
    rundir.erase(str(run), "drivers")
    assert (run / "drivers" / "000001.json").exists(), "there is no run to erase any more"
    open_run(dataclasses.replace(config, seed=1, overwrite="run"))
    open_run(dataclasses.replace(config, seed=1))
