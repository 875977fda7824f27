"""Runs side by side, from run directories as from MLflow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flashray.cli import main
from flashray.errors import ConfigError
from flashray.pipeline.compare_runs import Row, by_metric, compare, row_of_output
from flashray.tracking import Tracker
from flashray.tracking.client import find_runs
from flashray.tracking.tracking_config import TrackingConfig
from tests.support.runs import record

ROWS = [
    Row("a", "FINISHED", {"solver.steps": "20", "seed": "0", "io.output": "/a"}, {"psnr": 20.5, "mean_nfe": 3.0}),
    Row(
        "b",
        "FINISHED",
        {"solver.steps": "1000", "seed": "0", "io.output": "/b"},
        {"psnr": 25.25, "lpips": float("nan")},
    ),
    Row("c", "KILLED", {"solver.steps": "20", "seed": "0", "solver.settings.dc_step": "0.1"}, {}),
]


def test_what_differs_is_shown_and_what_is_known() -> None:
    lines = compare(ROWS).splitlines()
    assert lines[0] == "| run | status | solver.steps | solver.settings.dc_step | mean_nfe | psnr |"
    assert lines[2:] == [
        "| a | FINISHED | 20 |  | 3 | 20.5 |",
        "| b | FINISHED | 1000 |  |  | 25.25 |",
        "| c | KILLED | 20 | 0.1 |  |  |",
    ]
    assert "psnr" not in compare(ROWS, ["mean_nfe"])


def test_long_values_that_differ_look_different() -> None:
    def shown(*archives: str) -> list[str]:
        rows = [Row("a", "FINISHED", {"io.archive": archive}, {}) for archive in archives]
        return [line.split(" | ")[2].removesuffix(" |") for line in compare(rows).splitlines()[2:]]

    long = "s3://museum-archive-production/collections/"
    assert shown(f"{long}1930", f"{long}1950") == [
        f"s3://museum-archive-…ion/collections/{year}" for year in (1930, 1950)
    ]
    whole = [f"{long}{year}/photographs/mounted" for year in (1930, 1950)]
    assert shown(*whole) == whole


def test_sorted_by_a_number() -> None:
    assert [row.name for row in by_metric(ROWS, "psnr", ascending=False)] == ["b", "a", "c"]
    assert [row.name for row in by_metric(ROWS, "psnr", ascending=True)] == ["a", "b", "c"]
    assert [row.name for row in by_metric(ROWS, "lpips", ascending=True)] == ["a", "b", "c"]  # NaN is no number


def test_a_metric_that_no_run_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'pnsr' is in none of the runs \(did you mean psnr"):
        by_metric(ROWS, "pnsr", ascending=False)
    with pytest.raises(ConfigError, match="'pnsr' is in none"):
        compare(ROWS, ["pnsr"])


def test_a_run_directory_is_a_row(tmp_path: Path) -> None:
    config = {"recipe": {"solver": {"steps": 20}}, "io": {"format": "same"}}
    fingerprint = {"weights.prior": "abc", "recipe.seed": 0}
    written: dict[str, Any] = {"created": "now", "config": config, "fingerprint": fingerprint, "archive": {"images": 1}}
    record(tmp_path).mkdir()
    (record(tmp_path) / "run.json").write_text(json.dumps(written))
    params = {"recipe.solver.steps": "20", "io.format": "same", "weights.prior": "abc"}
    row = row_of_output(str(tmp_path))
    assert (row.status, row.params) == ("not finished", params)
    counts = {"images": 1, "restored": 1, "failed": 0, "mean_nfe": 3.0}
    summary = counts | {"psnr": 20.5, "lpips": None, "psnr_interval": [20, 21], "distributions": {}, "failures": []}
    (record(tmp_path) / "summary.json").write_text(json.dumps(summary))
    row = row_of_output(str(tmp_path))
    assert (row.status, row.metrics) == (
        "FINISHED",
        counts | {"psnr": 20.5, "psnr_interval_low": 20, "psnr_interval_high": 21},
    )
    with pytest.raises(ConfigError, match="holds no run"):
        row_of_output(str(tmp_path / "nothing"))


def test_runs_of_mlflow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for steps, psnr in ((20, 20.5), (1000, 25.25), (50, 21.0)):
        one = Tracker(TrackingConfig(tracking_uri=uri, experiment="mine", patience=60), str(tmp_path / f"run{steps}"))
        one.start(f"steps {steps}", {"solver.steps": steps}, {}, "")
        one.metrics({"psnr": psnr})
        one.end("FINISHED")
    assert len(find_runs(uri, "mine")) == 3
    arguments = ["--experiment", "mine", "--filter", "params.`solver.steps` != '50'", "--sort", "psnr"]
    assert main(["compare", *arguments, "--tracking-uri", uri]) == 0
    head, _, first, second = capsys.readouterr().out.strip().splitlines()
    assert head == "| run | status | solver.steps | psnr |"
    assert first.startswith("| steps 1000 ")
    assert first.endswith(" | FINISHED | 1000 | 25.25 |")
    assert second.endswith(" | FINISHED | 20 | 20.5 |")
    with pytest.raises(ConfigError, match=r"experiment yours: not at sqlite.*; there are Default, mine"):
        find_runs(uri, "yours")
    assert main(["compare", "--experiment", "mine", "--filter", "metrics.psnr > 99", "--tracking-uri", uri]) == 2
    assert "no run passes the filter" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="MLflow at sqlite"):
        find_runs(uri, "mine", "metrics psnr")
    with pytest.raises(ConfigError, match=r"MLflow at http://127.0.0.1:1: .*refused"):
        find_runs("http://127.0.0.1:1", "mine")


def test_what_chooses_runs_of_mlflow_is_refused_beside_outputs(capsys: pytest.CaptureFixture[str]) -> None:
    for option, value in (("--limit", "1"), ("--filter", "metrics.psnr > 25"), ("--experiment", "mine")):
        assert main(["compare", "a", "b", option, value]) == 2
        assert f"{option} chooses among MLflow's runs; leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("given", [True, False])
def test_where_nothing_is_tracked_no_database_is_created(
    given: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["compare", *(["--tracking-uri", f"sqlite:///{tmp_path}/x%25.db?a=b"] if given else [])]) == 2
    assert "there is no such file, so nothing is tracked" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
