"""Runs of experiments: every kind from beginning to end, resumption, failures, and what is refused."""

from __future__ import annotations

import copy
import csv
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from PIL import Image

from benchmarks import compute_cell as work
from benchmarks.run_experiment import EXPERIMENTS, command
from flashray.errors import ConfigError
from flashray.tracking.tracking_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.experiments import GRID, Run


def rows(output: Path) -> list[dict[str, Any]]:
    """Every image's row, without what differs from run to run."""
    table = pq.read_table(output / "images.parquet").to_pylist()
    return [{name: value for name, value in row.items() if name != "seconds"} for row in table]


def stamps(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output / "cells").iterdir()}


def changed(**values: Any) -> dict[str, Any]:
    """The grid with some of its values replaced, by their paths."""
    grid = copy.deepcopy(GRID)
    for path, value in values.items():
        inner: Any = grid
        *parents, last = [int(part) if part.isdigit() else part for part in path.split("__")]
        for part in parents:
            inner = inner[part]
        inner[last] = value
    return grid


@pytest.mark.parametrize("name", [path.stem for path in sorted(EXPERIMENTS.glob("*.yaml"))])
def test_every_experiment_makes_its_report(name: str, run: Run, tmp_path: Path, tiny_models: TinyModels) -> None:
    for encoder in ("0", "10"):
        (tmp_path / "models").mkdir(exist_ok=True)
        (tmp_path / "models" / f"severity_lambda_{encoder}").symlink_to(tiny_models.encoder)
    assert run(name, tmp_path / "run", skip_missing=True, models=str(tmp_path / "models")) == 0
    output = tmp_path / "run"
    page = (output / "report.md").read_text()
    drawn = sorted((output / "figures").iterdir())
    assert drawn
    for path in drawn:
        assert f"](figures/{path.name})" in page
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) > 50
    found = rows(output)
    with (output / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert sum(int(row["images"]) for row in table) == len(found)
    assert all(row["psnr"] is not None and row["error"] is None for row in found)
    assert len({row["method"] for row in found}) > 1 or name == "severity"


def test_only_what_is_missing_is_computed_again(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "run"
    assert run(GRID, output) == 0
    before, first = stamps(output), rows(output)
    lost = sorted((output / "cells").glob("*full*"))
    assert len(lost) == 3
    for path in lost:
        path.unlink()
    assert run(GRID, output) == 0
    assert "3 cells, 1 to compute" in capsys.readouterr().out
    after = stamps(output)
    assert after.keys() == before.keys()
    assert {name for name in after if after[name] != before[name]} == {path.name for path in lost}
    assert rows(output) == first
    assert run(GRID, output, report_only=True) == 0
    assert stamps(output) == after


def test_a_kill_between_cells_loses_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output, compute = tmp_path / "run", work.compute_cell

    def killed(models: Any, cell: Any, *photos: Any) -> Any:
        if cell.method.name == "full":
            raise KeyboardInterrupt
        return compute(models, cell, *photos)

    with monkeypatch.context() as patch:
        patch.setattr(work, "compute_cell", killed)
        with pytest.raises(KeyboardInterrupt):
            run(GRID, output)
    kept = stamps(output)
    assert len(kept) == 6
    assert not (output / "report.md").exists()
    assert run(GRID, output) == 0
    assert kept.items() <= stamps(output).items()
    assert len(stamps(output)) == 9


def test_a_cell_that_fails_is_named_and_taken_up_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    output, compute = tmp_path / "run", work.compute_cell

    def broken(models: Any, cell: Any, *photos: Any) -> Any:
        if cell.method.name == "flash":
            raise RuntimeError("out of luck")
        return compute(models, cell, *photos)

    with monkeypatch.context() as patch:
        patch.setattr(work, "compute_cell", broken)
        assert run(GRID, output) == 1
    assert "blur: flash failed: out of luck" in caplog.text
    assert {row["method"] for row in rows(output)} == {"AE", "full"}
    assert run(GRID, output) == 0
    assert {row["method"] for row in rows(output)} == {"AE", "flash", "full"}


def test_another_definition_is_another_cell(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "run"
    run(GRID, output)
    before = stamps(output)
    run(changed(methods__1__solver__settings={"dc_step": 0.2}), output)
    after = stamps(output)
    assert before.items() < after.items()
    assert len(after) == len(before) + 3
    run(changed(methods__1__name="another name", pairs=[]), output)
    assert stamps(output) == after
    assert "another name" in (output / "report.md").read_text()


def test_ray_computes_the_same(run: Run, tmp_path: Path, ray_cluster: None) -> None:
    assert run(GRID, tmp_path / "here") == 0
    assert run(GRID, tmp_path / "there", launcher="ray", workers=2) == 0
    here, there = rows(tmp_path / "here"), rows(tmp_path / "there")
    assert [row["cell"] for row in here] == [row["cell"] for row in there]
    for one, other in zip(here, there, strict=True):
        assert one["key"] == other["key"]
        assert one["nfe"] == other["nfe"]
        assert one["psnr"] == pytest.approx(other["psnr"], abs=1e-3)


def test_what_the_rows_say(run: Run, tmp_path: Path) -> None:
    run(GRID, tmp_path / "run")
    found = rows(tmp_path / "run")
    by_method = {name: [row for row in found if row["method"] == name] for name in ("AE", "flash", "full")}
    assert [len(part) for part in by_method.values()] == [4, 4, 2]
    assert {row["nfe"] for row in by_method["full"]} == {6}
    assert {row["nfe"] for row in by_method["AE"]} == {0}
    assert len({row["nfe"] for row in by_method["flash"]}) > 1
    for flash, ae in zip(by_method["flash"], by_method["AE"], strict=True):
        assert flash["sigma_hat"] == pytest.approx(ae["sigma_hat"])
        assert flash["parameters"] == ae["parameters"]
        assert 0.3 <= json.loads(flash["parameters"])["blur_std"] <= 2.0
        assert flash["nfe"] == flash["start_step"]
    assert all(row["sigma_hat"] is None for row in by_method["full"])


def test_a_fixed_start_spends_at_least_as_much_as_flash(run: Run, tmp_path: Path) -> None:
    fixed = {"name": "fixed", "start": {"mode": "fixed"}, "solver": {"name": "latent_dps", "steps": 20}}
    run(changed(methods=[GRID["methods"][1], fixed], pairs=[], scales={"smoke": {"images": 4}}), tmp_path / "run")
    found = rows(tmp_path / "run")
    flash = [row["nfe"] for row in found if row["method"] == "flash"]
    (step,) = {row["nfe"] for row in found if row["method"] == "fixed"}
    assert step - 1 < sum(flash) / len(flash) <= step


def test_a_solver_may_believe_in_another_blur(run: Run, tmp_path: Path) -> None:
    wrong = {**GRID["tasks"][0], "name": "wrong", "believed_times": {"blur_std": 2.0}}
    run(changed(tasks=[*GRID["tasks"], wrong], pairs=[]), tmp_path / "run")
    found = rows(tmp_path / "run")
    right, mistaken = ([row for row in found if row["task"] == name] for name in ("blur", "wrong"))
    for one, other in zip(right, mistaken, strict=True):
        assert one["parameters"] == other["parameters"]  # what the photo went through
        assert (one["psnr"] == other["psnr"]) == (one["nfe"] == 0)
    assert any(row["nfe"] > 0 for row in right)


@pytest.mark.parametrize(
    ("grid", "config", "message"),
    [
        ({"methods__1__solver__name": "latnet_dps"}, {}, "solver 'latnet_dps' is not known"),
        ({"methods__1__solver__settings": {"step": 1}}, {}, "unknown key step"),
        ({"methods__1__sigma": "guess"}, {}, "'guess' is not known; known: encoder, true"),
        ({"methods__0__baseline": "autoencode"}, {}, "baseline 'autoencode' is not known"),
        ({"methods__0__settings": {"a": 1}}, {}, "unknown setting a"),
        ({"methods__1__prior": "models:none"}, {}, "no such folder"),
        ({"methods__1__severity_encoder": "models:none"}, {}, "not found; .*\n.*skip-missing"),
        ({"tasks__0__degradation__name": "bluur"}, {}, "'bluur' is not known"),
        ({"tasks__0__believed_times": {"std": 2.0}}, {}, "std is no parameter of gaussian_blur"),
        ({"tasks__0__severity": 2.0}, {}, "give 0 … 1"),
        ({"tasks__0__degradation__noise_std": -0.1}, {}, "noise_std is -0.1"),
        ({"tasks__0__degradation": {"name": "nonlinear_blur"}, "methods__1__solver": {"name": "psld"}}, {}, "adjoint"),
        ({}, {"photos": "/nowhere"}, "no image files"),
        ({}, {"offset": 100}, "none is left after offset 100"),
        ({}, {"prior": "/nowhere"}, "no such folder"),
        ({}, {"slots": 0}, "slots is 0"),
        (
            {"scales__smoke": {"images": 10}, "methods__1__sigma": "wavelet_noise"},
            {},
            "none is left to calib",
        ),
    ],
)
def test_bad_input_is_named_before_any_work(
    grid: dict[str, Any], config: dict[str, Any], message: str, run: Run, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run(changed(**grid), tmp_path / "run", **config)
    assert not (tmp_path / "run").exists()


def test_an_encoder_of_another_family_is_refused(run: Run, tmp_path: Path, tiny_models: TinyModels) -> None:
    with pytest.raises(ConfigError, match="trained on random_inpainting, and the task is gaussian_blur"):
        run(GRID, tmp_path / "run", severity_encoders={"gaussian_blur": tiny_models.other_encoder})
    assert not (tmp_path / "run").exists()


def test_an_output_belongs_to_one_experiment(run: Run, tmp_path: Path) -> None:
    run(GRID, tmp_path / "run")
    other = tmp_path / "elsewhere"
    other.mkdir()
    with pytest.raises(ConfigError, match="holds grid at scale smoke"):
        run("pareto", tmp_path / "run")


def test_a_damaged_cell_says_what_to_delete(run: Run, tmp_path: Path) -> None:
    run(GRID, tmp_path / "run")
    for path in (tmp_path / "run" / "cells").glob("*flash*.parquet"):
        path.write_bytes(b"cut")
    with pytest.raises(ConfigError, match=r"blur: flash are damaged .*; delete .*\.json"):
        run(GRID, tmp_path / "run")


def test_one_run_for_the_experiment_and_one_for_each_cell(run: Run, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for _ in "ab":  # the second start finds all done, and adds nothing
        assert (
            run(GRID, tmp_path / "run", tracking=TrackingConfig(tracking_uri=uri, experiment="tests", patience=60)) == 0
        )
    record = json.loads((tmp_path / "run" / "run.json").read_text())["mlflow"]
    found = MlflowClient(tracking_uri=uri).search_runs([record["experiment_id"]])
    children = [one for one in found if one.data.tags.get("mlflow.parentRunId") == record["run_id"]]
    assert len(found) == 4
    assert {one.info.run_name for one in children} == {"blur: AE", "blur: flash", "blur: full"}
    assert all({"psnr", "nfe", "images"} <= one.data.metrics.keys() for one in children)


def test_the_command_shows_no_folders_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    encoders = '{"gaussian_blur": "/home/me/runs/encoder"}'
    words = ["starts", "--photos", "/home/me/val", "--output", "s3://bucket/run", "--severity_encoders", encoders]
    monkeypatch.setattr("sys.argv", ["benchmark.py", *words])
    assert command() == (
        "python -m benchmarks starts --photos val --output s3://bucket/run "
        """--severity_encoders '{"gaussian_blur": "encoder"}'"""
    )
