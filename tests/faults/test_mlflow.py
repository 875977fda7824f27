"""An MLflow server that is absent, killed or frozen: the run that it should hear of does not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flashray.pipeline.verify import Verified
from tests.conftest import TinyModels
from tests.faults.conftest import Told
from tests.support.fault_harness import IMAGES, ROOT, Job
from tests.support.mlflow_server import MlflowServer
from tests.support.runs import flat_numbers, record, summary_of

pytestmark = pytest.mark.fault
# what happens, and when
FAULTS = {
    "MLflow server absent": "at start, until the replay",
    "kill -9 of the MLflow server": "mid-solve, until the replay",
    "kill -9 of the MLflow server, back at once": "mid-solve",
    "MLflow server frozen": "throughout, until the replay",
}


@pytest.fixture
def job(tiny_models: TinyModels, photos: Path, mlflow_server: MlflowServer, tmp_path: Path) -> Job:
    return tracked_job(tiny_models, photos, mlflow_server, tmp_path)


@pytest.fixture(scope="module")
def sound(
    tiny_models: TinyModels,
    photos: Path,
    mlflow_server: MlflowServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Job:
    """A run whose server nothing happens to."""
    job = tracked_job(tiny_models, photos, mlflow_server, tmp_path_factory.mktemp("sound"))
    assert job.run() == 0, job.said
    assert "tracking" not in job.said[-1]
    return job


def tracked_job(models: TinyModels, photos: Path, server: MlflowServer, folder: Path) -> Job:
    tracking = {"tracking.enabled": "true", "tracking.tracking_uri": server.uri, "tracking.experiment": "faults"}
    return Job(models, str(photos), str(folder / "run"), folder / "notes", tracking)


def tracked(server: MlflowServer, job: Job) -> Any:
    """The one MLflow run of this run directory, by what run.json says of it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    run = client.get_run(json.loads((record(job.output) / "run.json").read_text())["mlflow"]["run_id"])
    same = client.search_runs([run.info.experiment_id], f"tags.`flashray.output` = '{job.output}'")
    assert len(same) == 1
    return run


def replay(job: Job) -> None:
    command = [sys.executable, str(ROOT / "jobs" / "replay_tracking.py"), "--output", job.output]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr


def check(server: MlflowServer, job: Job, undisturbed: Job) -> None:
    """The run is whole, its bytes are those of the undisturbed one, and MLflow says what summary.json says."""
    assert job.verified() == Verified(images=IMAGES, restored=IMAGES)
    assert job.reconstructions() == undisturbed.reconstructions()
    run = tracked(server, job)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == flat_numbers(summary_of(job.output))


@pytest.mark.parametrize("fault", FAULTS)
def test_the_job_does_not_notice(
    fault: str, job: Job, mlflow_server: MlflowServer, sound: Job, undisturbed: Job, tell: Told
) -> None:
    frozen, midway = fault.endswith("frozen"), fault.startswith("kill")

    def strike() -> None:
        if midway:
            job.wait_for(lambda: bool(job.reached("commit")))
        mlflow_server.signal(signal.SIGSTOP if frozen else signal.SIGKILL)
        job.note_strike("mlflow")
        if fault.endswith("back at once"):
            mlflow_server.start()

    try:
        if midway:
            code = job.run(while_running=strike)
        else:
            strike()
            code = job.run()
    finally:
        if frozen:
            mlflow_server.signal(signal.SIGCONT)
        elif not mlflow_server.answers():
            mlflow_server.start()
    assert code == 0, job.said
    if not fault.endswith("back at once"):
        assert "flashray replay" in job.said[-1]
    for _ in "ab":  # the second one adds nothing
        replay(job)
    check(mlflow_server, job, undisturbed)
    tell(fault, FAULTS[fault], job, sound)


def test_a_killed_driver_is_running_then_killed_then_finished(
    job: Job, mlflow_server: MlflowServer, sound: Job, undisturbed: Job, tell: Told
) -> None:
    def when_it_runs(number: signal.Signals) -> None:
        commits = len(job.reached("commit"))
        job.wait_for(
            lambda: len(job.reached("commit")) > commits and tracked(mlflow_server, job).info.status == "RUNNING"
        )
        os.kill(int((job.folder / "driver.pid").read_text()), number)
        job.note_strike("driver")

    assert job.run(while_running=lambda: when_it_runs(signal.SIGKILL)) == -signal.SIGKILL
    assert tracked(mlflow_server, job).info.status == "RUNNING"  # nobody is left to say otherwise
    replay(job)
    assert tracked(mlflow_server, job).info.status == "KILLED"
    assert job.run(while_running=lambda: when_it_runs(signal.SIGTERM)) == 128 + signal.SIGTERM
    assert tracked(mlflow_server, job).info.status == "KILLED"
    assert job.run() == 0, job.said
    check(mlflow_server, job, undisturbed)
    tell("kill -9, then SIGTERM, of a tracked driver", "mid-solve", job, sound)
