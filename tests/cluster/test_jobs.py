"""`ray job submit` against a started head: exit codes, logs, outputs, and an end by `ray job stop`."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient

from flashray.pipeline.lease import latest
from flashray.pipeline.verify import Verified, verify
from tests.conftest import TinyModels
from tests.support.experiments import GRID
from tests.support.fault_harness import IMAGES, ROOT, arguments
from tests.support.ray_nodes import RAY, Cluster, cluster
from tests.support.runs import record, restored

pytestmark = pytest.mark.fault
ALONE = {"unit_images": 1, "slots": 1}


@pytest.fixture(scope="module")
def head() -> Iterator[Cluster]:
    with cluster(cpus=3) as one:
        yield one


def submit(head: Cluster, name: str, program: str, *argv: str, wait: bool = True) -> JobDetails:
    """`ray job submit` of the working tree, as a user gives it."""
    flags = ["--submission-id", name, "--working-dir", ".", "--runtime-env", "cluster/runtime_env.yaml"]
    entrypoint = ["python", *program.split(), *argv]
    call = [*RAY, "job", "submit", *flags, *([] if wait else ["--no-wait"]), "--", *entrypoint]
    done = subprocess.run(call, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=500)
    details = JobSubmissionClient(head.dashboard).get_job_info(name)
    if wait:  # the command itself knows only 0 and 1
        assert done.returncode == min(details.driver_exit_code or 0, 1), done.stdout + done.stderr
    return details


def logs(head: Cluster, name: str) -> str:
    """`ray job logs`."""
    call = [*RAY, "job", "logs", name]
    return subprocess.run(call, env=head.environment, capture_output=True, text=True, timeout=120, check=True).stdout


def test_a_submitted_run_and_one_that_was_stopped_and_submitted_again(
    head: Cluster,
    tiny_models: TinyModels,
    photos: Path,
    tmp_path: Path,
):
    output = tmp_path / "runs" / "undisturbed"
    done = submit(head, "whole", "jobs/reconstruct.py", *arguments(tiny_models, photos, output, **ALONE))
    said = logs(head, "whole")
    assert (done.status, done.driver_exit_code) == (JobStatus.SUCCEEDED, 0), said
    assert f"{IMAGES} of {IMAGES} images restored" in said
    assert "█░" not in said, "a bar is for terminals"
    assert "constructor arguments in the object store" not in said
    assert verify(str(output)) == Verified(images=IMAGES, restored=IMAGES)

    store = f"sqlite:///{tmp_path}/mlflow.db"
    stopped = tmp_path / "runs" / "stopped"
    argv = [one for one in arguments(tiny_models, photos, stopped, **ALONE) if not one.startswith("--tracking")]
    argv.append(f"--tracking.tracking_uri={store}")
    submit(head, "stopped", "jobs/reconstruct.py", *argv, wait=False)
    wait_for_a_commit(head, "stopped", stopped)
    client = JobSubmissionClient(head.dashboard)
    client.stop_job("stopped")
    while client.get_job_status("stopped") == JobStatus.RUNNING:
        time.sleep(0.2)
    assert client.get_job_status("stopped") == JobStatus.STOPPED
    assert "terminated; the same command goes on from here" in logs(head, "stopped")
    lease = latest(str(stopped))
    assert lease is not None
    assert lease.ended
    run_id = json.loads((record(stopped) / "run.json").read_text())["mlflow"]["run_id"]
    assert MlflowClient(store).get_run(run_id).info.status == "KILLED"
    committed = {path: path.stat().st_mtime_ns for path in (record(stopped) / "commits").iterdir()}
    assert 0 < len(committed) < IMAGES

    again = submit(head, "again", "jobs/reconstruct.py", *argv)
    assert again.driver_exit_code == 0, logs(head, "again")
    assert MlflowClient(store).get_run(run_id).info.status == "FINISHED"
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in committed.items())
    assert verify(str(stopped)) == Verified(images=IMAGES, restored=IMAGES)
    assert restored(str(stopped)) == restored(str(output))


def wait_for_a_commit(head: Cluster, name: str, output: Path) -> None:
    deadline = time.monotonic() + 300
    client = JobSubmissionClient(head.dashboard)
    while not any((record(output) / "commits").glob("*.parquet")):
        assert client.get_job_status(name) in (JobStatus.PENDING, JobStatus.RUNNING), logs(head, name)
        assert time.monotonic() < deadline, logs(head, name)
        time.sleep(0.05)


def test_a_relative_path_ends_a_submitted_job_with_code_2(head: Cluster, tiny_models: TinyModels, photos: Path):
    done = submit(head, "relative", "jobs/reconstruct.py", *arguments(tiny_models, photos, "runs/here"))
    assert (done.status, done.driver_exit_code) == (JobStatus.FAILED, 2)
    said = logs(head, "relative")
    assert "output is 'runs/here', a relative path: a submitted Ray job runs in a temporary copy" in said
    assert "s3://bucket/prefix" in said


def test_training_is_submitted_the_same_way(head: Cluster, tiny_models: TinyModels, photos: Path, tmp_path: Path):
    settings = {
        "photos": photos,
        "val_photos": photos,
        "output": tmp_path / "encoder",
        "prior": tiny_models.prior,
        "loop.epochs": 1,
        "loop.batch_size": 4,
        "launch.storage": tmp_path / "states",
        "launch.device": "cpu",
        "launch.threads": 1,
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    done = submit(head, "training", "jobs/train_severity.py", *flags)
    said = logs(head, "training")
    assert done.driver_exit_code == 0, said
    assert (tmp_path / "encoder" / "config.json").is_file()


def test_an_experiment_is_submitted_the_same_way(
    head: Cluster,
    tiny_models: TinyModels,
    photos: Path,
    tmp_path: Path,
):
    grid = GRID | {"methods": GRID["methods"][:2], "pairs": []}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid))
    settings = {
        "photos": photos,
        "output": tmp_path / "run",
        "scale": "smoke",
        "prior": tiny_models.prior,
        "severity_encoders": json.dumps({"gaussian_blur": tiny_models.encoder}),
        "tracking.enabled": "false",
    }
    flags = [f"--{name}={value}" for name, value in settings.items()]
    done = submit(head, "experiment", "-m benchmarks", str(tmp_path / "grid.yaml"), *flags)
    said = logs(head, "experiment")
    assert done.driver_exit_code == 0, said
    assert "2/2" in said
    assert (tmp_path / "run" / "report.md").is_file()
