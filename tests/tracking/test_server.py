"""Tracking at a real MLflow server whose artifacts are on a real S3 server."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from flashray.tracking import Tracker
from flashray.tracking.replay_events import replay
from flashray.tracking.tracking_config import TrackingConfig
from tests.support.mlflow_server import MlflowServer
from tests.support.tracked import START, events


def tracker(server: MlflowServer, output: Path, patience: float = 60) -> Tracker:
    output.mkdir(exist_ok=True)
    (output / "summary.json").write_text('{"psnr": 31.5}')
    one = Tracker(TrackingConfig(tracking_uri=server.uri, experiment="tests", patience=patience), str(output))
    one.start(**START)
    return one


def tell(one: Tracker) -> None:
    one.metrics({"psnr": 31.5})
    one.child("a", "cell a", {"task": "blur"}, {"psnr": 20.0})
    one.file("summary.json")


def whole(server: MlflowServer, run_id: str) -> bool:
    """Whether the run is there once with all that `tell` told, artifacts on S3 included."""
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=server.uri)
    run = client.get_run(run_id)
    name = run.data.tags["flashray.run"]
    again = client.search_runs([run.info.experiment_id], f"tags.`flashray.run` = '{name}'")
    children = client.search_runs([run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run_id}'")
    kept = mlflow.artifacts.load_text(f"runs:/{run_id}/summary.json")
    return (
        (run.info.status, run.data.metrics, run.data.params["solver.steps"]) == ("FINISHED", {"psnr": 31.5}, "20")
        and len(again) == 1
        and [(child.info.status, child.data.metrics) for child in children] == [("FINISHED", {"psnr": 20.0})]
        and len(client.get_metric_history(run_id, "psnr")) == 1
        and kept == '{"psnr": 31.5}'
    )


@pytest.fixture(autouse=True)
def tracked_there(mlflow_server: MlflowServer) -> None:
    import mlflow

    mlflow.set_tracking_uri(mlflow_server.uri)


@pytest.mark.slow
def test_a_run_on_a_server(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    one = tracker(mlflow_server, tmp_path)
    tell(one)
    one.end("FINISHED")
    assert one.record is not None
    assert one.record["url"].startswith(f"{mlflow_server.uri}/#/experiments/")
    assert whole(mlflow_server, one.record["run_id"])


@pytest.mark.fault
def test_a_server_that_is_frozen_costs_no_more_than_the_patience(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    mlflow_server.signal(signal.SIGSTOP)
    try:
        began = time.monotonic()
        one = tracker(mlflow_server, tmp_path, patience=3)
        tell(one)
        telling = time.monotonic() - began
        one.end("FINISHED")
        waited = time.monotonic() - began - telling
    finally:
        mlflow_server.signal(signal.SIGCONT)
    print(f"telling took {telling:.3f} s, the end {waited:.3f} s")
    assert one.record is not None
    assert one.record["pending"]
    assert len(events(str(tmp_path))) == 6
    sent, record = replay(str(tmp_path))
    assert sent == 6
    assert whole(mlflow_server, record["run_id"])


@pytest.mark.fault
def test_a_server_that_dies_again_and_again_has_all_in_the_end(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    one = tracker(mlflow_server, tmp_path, patience=60)

    def work() -> None:
        for n in range(60):
            one.child(str(n), f"cell {n}", {"task": "blur"}, {"psnr": float(n)})
            time.sleep(0.1)

    driver = threading.Thread(target=work)
    driver.start()
    for _ in range(2):  # not in a thread: the server ends with the thread that started it
        time.sleep(1)
        mlflow_server.signal(signal.SIGKILL)
        mlflow_server.start()
    driver.join()
    one.end("FINISHED")
    replay(str(tmp_path))
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=mlflow_server.uri)
    record = one.record
    assert record is not None
    found = client.search_runs([record["experiment_id"]], f"tags.`mlflow.parentRunId` = '{record['run_id']}'")
    assert sorted(run.data.metrics["psnr"] for run in found) == list(range(60))
    assert {run.info.status for run in found} == {"FINISHED"}
    assert client.get_run(record["run_id"]).info.status == "FINISHED"
