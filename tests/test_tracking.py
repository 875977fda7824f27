"""Tracking: what a run's MLflow run says, and that MLflow cannot hurt."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flashray.config import TrackingConfig
from flashray.tracking import Tracker, default_uri

START: dict[str, Any] = {
    "name": "a run",
    "params": {"solver.steps": 20, "degradation.settings.std": [0.3, 3.0]},
    "tags": {"flashray.method": "flash(latent_dps)"},
    "config_yaml": "seed: 0\n",
}


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A run directory; the database beside it is made once for the module."""
    return str(tmp_path_factory.mktemp("tracked") / "run")


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def stored(record: dict[str, Any]) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=record["tracking_uri"]).get_run(record["run_id"])


def test_a_run_is_recorded(output: str) -> None:
    tracker = Tracker(TrackingConfig(experiment="tests"), output)
    tracker.start(**START)
    record = tracker.record
    assert record is not None
    assert record["tracking_uri"] == f"sqlite:///{Path(output).parent}/mlflow.db"
    assert record["url"].endswith(f"/experiments/{record['experiment_id']}/runs/{record['run_id']}")
    assert stored(record).info.status == "RUNNING"
    tracker.metrics({"psnr": 31.5, "mean_nfe": 12.0})
    tracker.values({"histogram": [1, 2]}, "distributions.json")
    tracker.picture(Image.new("RGB", (8, 8)), "contact_sheet.png")
    tracker.end("FINISHED")

    run = stored(record)
    assert run.info.status == "FINISHED"
    assert run.data.params == {"solver.steps": "20", "degradation.settings.std": "[0.3, 3.0]"}
    assert run.data.metrics == {"psnr": 31.5, "mean_nfe": 12.0}
    assert run.data.tags["flashray.method"] == "flash(latent_dps)"
    artifacts = Path(output).parent / "mlartifacts" / record["run_id"] / "artifacts"
    assert {path.name for path in artifacts.iterdir()} == {"config.yaml", "distributions.json", "contact_sheet.png"}


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_the_end_is_told_truthfully(output: str, status: str) -> None:
    tracker = Tracker(TrackingConfig(experiment="tests"), output)
    tracker.start(**START)
    tracker.end(status)
    assert tracker.record is not None
    assert stored(tracker.record).info.status == status


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(output: str) -> None:
    first = Tracker(TrackingConfig(experiment="tests"), output)
    first.start(**START)
    first.end("KILLED")
    second = Tracker(TrackingConfig(experiment="tests"), output, first.record)
    second.start(**START | {"params": {"solver.steps": 30}})  # parameters cannot change, and are not written again
    assert second.record == first.record
    assert second.record is not None
    assert stored(second.record).info.status == "RUNNING"
    second.end("FINISHED")
    assert stored(second.record).data.params["solver.steps"] == "20"


def test_a_run_that_is_gone_is_made_anew(output: str) -> None:
    lost = {"tracking_uri": f"sqlite:///{Path(output).parent}/mlflow.db", "run_id": "0" * 32, "experiment_id": "1"}
    tracker = Tracker(TrackingConfig(experiment="tests"), output, lost)
    tracker.start(**START)
    assert tracker.record is not None
    assert tracker.record["run_id"] != lost["run_id"]
    tracker.end("FINISHED")


def children(record: dict[str, Any]) -> list[Any]:
    from mlflow import MlflowClient

    found = MlflowClient(tracking_uri=record["tracking_uri"]).search_runs([record["experiment_id"]])
    return [run for run in found if run.data.tags.get("mlflow.parentRunId") == record["run_id"]]


def test_children_are_logged_once(output: str) -> None:
    first = Tracker(TrackingConfig(experiment="tests"), output)
    first.start(**START)
    first.child("a", "cell a", {"task": "blur"}, {"psnr": 20.0})
    first.end("KILLED")
    second = Tracker(TrackingConfig(experiment="tests"), output, first.record)
    second.start(**START)
    for key in ("a", "b", "b"):
        second.child(key, f"cell {key}", {"task": "blur"}, {"psnr": 21.0})
    second.end("FINISHED")
    assert second.record is not None
    found = {run.info.run_name: run for run in children(second.record)}
    assert len(children(second.record)) == 2
    assert {name: run.data.metrics for name, run in found.items()} == {
        "cell a": {"psnr": 20.0},
        "cell b": {"psnr": 21.0},
    }
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["cell a"].data.params == {"task": "blur"}


def test_a_store_that_fails_again_and_again_is_given_up(
    output: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = Tracker(TrackingConfig(experiment="tests"), output)
    tracker.start(**START)
    assert tracker.record is not None
    asked = []

    def unreachable(*arguments: Any, **more: Any) -> None:
        asked.append(arguments)
        raise ConnectionError("no route to the server")

    monkeypatch.setattr("mlflow.MlflowClient.create_run", unreachable)
    for key in range(50):
        tracker.child(str(key), "cell", {}, {})
    assert len(asked) == 3
    assert "given up" in caplog.text


def test_a_broken_store_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = TrackingConfig(tracking_uri="nonsense://me:hunter2@host")
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(broken, str(tmp_path / "run"))
        tracker.start(**START)
        tracker.metrics({"psnr": 1.0})
        tracker.end("FINISHED")
        assert tracker.record is None
    assert "tracking" in caplog.text
    assert "hunter2" not in caplog.text


def test_no_tracking(tmp_path: Path) -> None:
    tracker = Tracker(TrackingConfig(enabled=False), str(tmp_path / "run"))
    tracker.start(**START)
    tracker.metrics({"psnr": 1.0})
    tracker.end("FINISHED")
    assert tracker.record is None
    assert not (tmp_path / "mlflow.db").exists()


def test_where_runs_are_tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_uri("/data/run") == "sqlite:////data/mlflow.db"
    assert default_uri("s3://bucket/run") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert default_uri("/data/run") == "http://mlflow.example"
