"""Tracking: what a run's MLflow run says, and that MLflow cannot hurt. The store is an embedded database."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import pytest

from flashray.errors import ConfigError, FlashrayError
from flashray.tracking import Tracker, default_uri
from flashray.tracking.client import connect, experiment_id, lost_with_the_job, uri_again
from flashray.tracking.replay_events import replay
from flashray.tracking.tracking_config import TrackingConfig
from tests.support.tracked import START, events

NOWHERE = "http://127.0.0.1:1"  # nobody listens there


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the module's run directories are; the database beside them is made once."""
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture
def output(folder: Path, request: pytest.FixtureRequest) -> str:
    """A run directory of the test's own."""
    return str(folder / request.node.name.replace("/", "_"))


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def tracker(output: str, **config: Any) -> Tracker:
    made = Tracker(TrackingConfig(**{"experiment": "tests", "patience": 60} | config), output)
    made.start(**START)
    return made


def known(one: Tracker) -> dict[str, Any]:
    """The record once MLflow has all."""
    one.settle()
    assert one.record is not None
    assert one.record["run_id"]
    return one.record


def die(one: Tracker) -> None:
    """As where the driver is killed: no end is recorded, and no event is sent any more."""
    assert one._thread is not None
    one._thread.stop()


def client(output: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=default_uri(output))


def runs(output: str) -> list[Any]:
    """All runs of this run directory, children included."""
    named = {event["id"] for event in events(output) if event["kind"] == "start"}
    (experiment,) = client(output).search_experiments(filter_string="name = 'tests'")
    found = client(output).search_runs([experiment.experiment_id])
    ids = {run.info.run_id for run in found if run.data.tags["flashray.run"] in named}
    return [run for run in found if run.info.run_id in ids or run.data.tags.get("mlflow.parentRunId") in ids]


def test_a_run_is_recorded(output: str) -> None:
    one = tracker(output)
    record = known(one)
    assert record["tracking_uri"] == f"sqlite:///{Path(output).parent}/mlflow.db"
    assert record["url"].endswith(f"/experiments/{record['experiment_id']}/runs/{record['run_id']}")
    assert client(output).get_run(record["run_id"]).info.status == "RUNNING"
    one.metrics({"psnr": 31.5, "mean_nfe": 12.0, "lpips": None})
    Path(output, "figures").mkdir()
    Path(output, "figures", "cost.png").write_bytes(b"a picture")
    one.file("figures/cost.png")
    one.file("not/there.png")  # a later start has taken it back
    one.end("FINISHED")

    run = client(output).get_run(record["run_id"])
    assert run.info.status == "FINISHED"
    assert run.data.params == {"solver.steps": "20", "degradation.settings.std": "[0.3, 3.0]"}
    assert run.data.metrics == {"psnr": 31.5, "mean_nfe": 12.0}
    assert run.data.tags["flashray.method"] == "flash(latent_dps)"
    artifacts = Path(output).parent / "mlartifacts" / record["run_id"] / "artifacts"
    assert (artifacts / "config.yaml").read_text() == "seed: 0\n"
    assert (artifacts / "figures" / "cost.png").read_bytes() == b"a picture"


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_the_end_is_recorded_truthfully(output: str, status: str) -> None:
    one = tracker(output)
    one.end(status)
    assert client(output).get_run(known(one)["run_id"]).info.status == status


def test_a_resumed_run_goes_on_in_the_same_mlflow_run(output: str) -> None:
    first = tracker(output)
    first.metrics({"psnr": 30.0, "images_per_second": 2.0})
    first.end("KILLED")
    second = Tracker(TrackingConfig(experiment="tests", patience=60), output)
    second.start(**START | {"params": {"solver.steps": 30}})  # parameters cannot change, and are not written again
    assert known(second) == known(first)
    run_id = known(second)["run_id"]
    assert client(output).get_run(run_id).info.status == "RUNNING"
    second.metrics({"psnr": 31.0, "images_per_second": None, "ssim": None})
    second.end("FINISHED")
    run = client(output).get_run(run_id)
    assert (run.info.status, run.data.params["solver.steps"]) == ("FINISHED", "20")
    assert run.data.metrics["psnr"] == 31.0
    assert math.isnan(run.data.metrics["images_per_second"])  # not the number of another start
    assert "ssim" not in run.data.metrics


def test_a_run_that_is_gone_is_made_anew_with_all_events(output: str) -> None:
    first = tracker(output)
    first.metrics({"psnr": 30.0})
    first.end("KILLED")
    client(output).delete_run(known(first)["run_id"])
    second = tracker(output)
    second.end("FINISHED")
    assert known(second)["run_id"] != known(first)["run_id"]
    run = client(output).get_run(known(second)["run_id"])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"psnr": 30.0})
    assert run.data.params["solver.steps"] == "20"


def test_children_are_logged_once(output: str) -> None:
    first = tracker(output)
    first.child("a", "cell a", {"task": "blur"}, {"psnr": 20.0})
    first.end("KILLED")
    second = tracker(output)
    for key in ("a", "b", "b"):
        second.child(key, f"cell {key}", {"task": "blur"}, {"psnr": 21.0})
    second.end("FINISHED")
    parent = known(second)["run_id"]
    children = [run for run in runs(output) if run.data.tags.get("mlflow.parentRunId") == parent]
    assert {run.info.run_name: run.data.metrics for run in children} == {
        "cell a": {"psnr": 20.0},
        "cell b": {"psnr": 21.0},
    }
    assert len(children) == 2
    assert {run.info.status for run in children} == {"FINISHED"}
    assert all(run.data.params == {"task": "blur"} for run in children)


def test_what_no_server_took_is_replayed_and_replaying_again_adds_nothing(
    output: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path(output).mkdir()
    Path(output, "summary.json").write_text("{}")
    away = tracker(output, tracking_uri=NOWHERE, patience=5)
    assert away.record == {"tracking_uri": NOWHERE, "run_id": None, "url": None, "pending": True}
    away.metrics({"psnr": 31.5})
    away.child("a", "cell a", {"task": "blur"}, {"psnr": 20.0})
    away.file("summary.json")
    away.end("FINISHED")
    assert "6 events are not in MLflow yet" in caplog.text
    assert f"flashray replay {output}" in caplog.text
    with pytest.raises(FlashrayError, match=r"127.0.0.1:1 took 0 of 6 events: .*refused"):
        replay(output)

    def state() -> list[Any]:
        def history(run: Any) -> list[Any]:
            return [client(output).get_metric_history(run.info.run_id, name) for name in run.data.metrics]

        return [
            (run.info.run_id, run.info.status, run.data.params, [[dict(m) for m in one] for one in history(run)])
            for run in runs(output)
        ]

    sent, record = replay(output, default_uri(output))
    assert sent == 6
    found = state()
    assert len(found) == 2
    assert client(output).get_run(record["run_id"]).info.status == "FINISHED"
    assert client(output).get_run(record["run_id"]).info.start_time == events(output)[0]["time"]
    assert replay(output, default_uri(output)) == (0, record)
    Path(output, "tracking", "sent.json").unlink()  # and so does a replay that knows nothing of the first
    assert replay(output, default_uri(output)) == (6, record)
    assert state() == found


def test_a_driver_that_was_killed_is_marked_so_by_a_replay(output: str) -> None:
    one = tracker(output)
    record = known(one)
    die(one)
    assert replay(output)[1] == record
    assert client(output).get_run(record["run_id"]).info.status == "KILLED"
    assert events(output)[-1]["kind"] == "end"


def test_a_run_that_lacks_only_its_end_is_brought_to_it(output: str) -> None:
    Path(output).mkdir()
    Path(output, "summary.json").write_text("{}")
    one = tracker(output)
    one.metrics({"psnr": 3.0})
    run_id = known(one)["run_id"]
    die(one)
    next_start = Tracker(TrackingConfig(experiment="tests", patience=60), output)
    assert next_start.behind()
    next_start.catch_up(["summary.json"], "FINISHED")
    assert not next_start.behind()
    run = client(output).get_run(run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"psnr": 3.0})
    assert [file.path for file in client(output).list_artifacts(run_id)] == ["config.yaml", "summary.json"]


def test_a_run_that_a_replay_marked_as_killed_is_brought_to_its_end(output: str) -> None:
    one = tracker(output)
    run_id = known(one)["run_id"]
    die(one)
    replay(output)
    next_start = Tracker(TrackingConfig(experiment="tests", patience=60), output)
    assert next_start.behind()
    next_start.catch_up([], "FINISHED")
    assert not next_start.behind()
    assert client(output).get_run(run_id).info.status == "FINISHED"


def test_the_records_lie_in_the_run_folder_and_the_database_beside_the_output(tmp_path: Path) -> None:
    output, folder = tmp_path / "out", tmp_path / "out" / "_flashray"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    one = Tracker(TrackingConfig(experiment="tests", patience=60), str(output), str(folder))
    one.start(**START)
    one.file("summary.json")
    one.end("FINISHED")
    assert known(one)["tracking_uri"] == f"sqlite:///{tmp_path}/mlflow.db"
    assert replay(str(folder)) == (0, one.record)
    assert sorted(path.name for path in output.iterdir()) == ["_flashray"]
    assert sorted(path.name for path in folder.iterdir()) == ["summary.json", "tracking"]


def test_a_store_of_artifacts_that_is_away_holds_up_nothing_else(
    output: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable(*arguments: Any) -> None:
        raise ConnectionError("no route to the store")

    one = tracker(output)
    known(one)
    Path(output, "summary.json").write_text("{}")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.MlflowClient.log_artifact", unreachable)
        one.file("summary.json")
        one.metrics({"psnr": 1.0})
        one.end("FINISHED")
    run = client(output).get_run(known(one)["run_id"])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"psnr": 1.0})
    assert "no route to the store" in caplog.text
    assert replay(output)[0] == 1
    assert "summary.json" in [file.path for file in client(output).list_artifacts(run.info.run_id)]


def test_a_store_of_artifacts_that_was_never_there_holds_up_nothing_else(
    output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*arguments: Any) -> None:
        raise ConnectionError("no route to the store")

    with monkeypatch.context() as patch:
        for name in ("log_artifact", "log_text"):
            patch.setattr(f"mlflow.MlflowClient.{name}", unreachable)
        one = tracker(output)
        one.metrics({"psnr": 1.0})
        one.child("a", "cell a", {"task": "blur"}, {"psnr": 20.0})
        one.end("FINISHED")
    run = client(output).get_run(known(one)["run_id"])
    assert (run.info.status, run.data.metrics, len(runs(output))) == ("FINISHED", {"psnr": 1.0}, 2)
    replay(output)
    assert [file.path for file in client(output).list_artifacts(run.info.run_id)] == ["config.yaml"]


def test_what_is_refused_for_good_is_dropped(output: str, caplog: pytest.LogCaptureFixture) -> None:
    one = tracker(output)
    one.metrics({"no \t name?": 1.0})
    one.metrics({"psnr": 1.0})
    one.end("FINISHED")
    run = client(output).get_run(known(one)["run_id"])
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"psnr": 1.0})
    assert "MLflow refuses metrics" in caplog.text


def test_a_run_made_twice_by_a_server_that_woke_up_is_one_in_the_end(output: str) -> None:
    one = tracker(output)
    record = known(one)
    start = events(output)[0]
    client(output).create_run(record["experiment_id"], tags={"flashray.run": start["id"]})
    one.end("FINISHED")
    assert [run.info.run_id for run in runs(output)] == [record["run_id"]]


def test_a_broken_store_is_a_warning(output: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        one = tracker(output, tracking_uri="nonsense://me:hunter2@host")
        one.metrics({"psnr": 1.0})
        one.end("FINISHED")
    assert "tracking" in caplog.text
    assert "hunter2" not in caplog.text
    assert not any(b"hunter2" in path.read_bytes() for path in Path(output).rglob("*.json"))


def test_a_run_directory_that_cannot_be_written_to_is_a_warning(
    output: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("flashray.storage.put_bytes", full)
    one = tracker(output)
    one.metrics({"psnr": 1.0})
    one.end("FINISHED")
    assert "no space left on device" in caplog.text


def test_no_tracking(tmp_path: Path) -> None:
    one = tracker(str(tmp_path / "run"), enabled=False)
    one.metrics({"psnr": 1.0})
    one.end("FINISHED")
    assert one.record is None
    assert not one.behind()
    assert not list(tmp_path.iterdir())


def test_a_directory_that_was_never_tracked_cannot_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keeps nothing for MLflow"):
        replay(str(tmp_path))


def test_where_runs_are_tracked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_uri("/data/run") == "sqlite:////data/mlflow.db"
    assert default_uri("s3://bucket/run") == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow.example")
    assert default_uri("/data/run") == "http://mlflow.example"


def test_a_password_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, whole = "https://***@mlflow.example", "https://me:hunter2@mlflow.example"
    assert uri_again("http://mlflow.example") == "http://mlflow.example"
    assert uri_again(shown, "http://other") == "http://other"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI"):
        uri_again(shown)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", whole)
    assert uri_again(shown) == whole


@pytest.mark.parametrize(
    "uri", ["https://me:12/hunter2@host", "https://me:12?hunter2@host", "mysql://me:1@hunter2@host"]
)
def test_a_password_that_would_be_read_as_host_or_path_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="write %2F") as caught:
        connect(uri)
    assert "hunter2" not in str(caught.value)
    connect("https://me:hunter%2F2@host:5000/path")


@pytest.mark.parametrize(
    "uri", ["https://me:12/hunter2@localhost:1", "http://me:hunter2@127.0.0.1:1"], ids=["ambiguous", "plain"]
)
def test_no_secret_is_kept_or_shown(output: str, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    one = Tracker(TrackingConfig(tracking_uri=uri, patience=10), output)
    secret = {"archive": "http://me:hunter2@host/photos", "references": "https://host/x?X-Amz-Signature=hunter2"}
    one.start("a run", secret, secret, "archive: http://me:hunter2@host/photos\n")
    one.child("a", "cell a", secret, {})
    one.end("FAILED")
    assert "tracking" in caplog.text
    kept = [path.read_text() for path in Path(output).rglob("*.json")]
    assert kept
    assert not any("hunter2" in text for text in [*kept, caplog.text, str(one.record)])


def test_a_database_that_ends_with_a_submitted_job_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with an output in an object store: beside that there can be no database."""
    monkeypatch.chdir(tmp_path)
    place = default_uri("memory://bucket/run")
    assert not lost_with_the_job(place)
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert lost_with_the_job(place)
    assert not lost_with_the_job("http://mlflow:5000")
    assert not lost_with_the_job(default_uri("/runs/one"))
    one = Tracker(TrackingConfig(patience=0), "memory://bucket/run")
    one.start(**START)
    one.settle()
    assert "ends with it: name a server" in caplog.text
    assert "memory://bucket/run/tracking keeps the run" in caplog.text


def test_an_experiment_that_another_makes_in_between(output: str) -> None:
    """Two runs that begin at once, or a call that a slow server comes to after it was given up."""

    class Late:
        """A client whose first look comes before the other's experiment."""

        def __init__(self, client: Any) -> None:
            self.client, self.looks = client, 0

        def get_experiment_by_name(self, name: str) -> Any:
            self.looks += 1
            return None if self.looks == 1 else self.client.get_experiment_by_name(name)

        def create_experiment(self, name: str, artifact_location: str | None) -> str:
            return self.client.create_experiment(name, artifact_location=artifact_location)

    other = client(output)
    there = other.create_experiment("made in between")
    assert experiment_id(Late(other), "made in between", default_uri(output)) == there
