"""An MLflow server that is absent, killed or frozen: the run that it should hear of does not notice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashray.pipeline.verify import Verified, verify
from tests.conftest import TinyModels
from tests.faults.harness import IMAGES, ROOT, arguments
from tests.mlflow_server import MlflowServer
from tests.pipeline.test_run import flat_numbers, reconstructions

EXPERIMENT = "faults"
Settings = Callable[[Path], list[str]]


def start(job: str, argv: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / "jobs" / job), *argv]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(driver: subprocess.Popen[str], there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 240
    while not there():
        assert driver.poll() is None, "the driver ended too early"
        assert time.monotonic() < deadline, "the driver is too slow"
        time.sleep(0.005)


def committed(output: Path, least: int = 1) -> bool:
    return (output / "commits").is_dir() and len(list((output / "commits").iterdir())) >= least


@pytest.fixture(scope="module")
def settings(tiny_models: TinyModels, photos: Path, mlflow_server: MlflowServer) -> Settings:
    def settings(output: Path) -> list[str]:
        argv = [
            one for one in arguments(tiny_models, photos, output, unit_images=1, slots=1) if "mlflow.enabled" not in one
        ]
        return [*argv, f"--mlflow.tracking_uri={mlflow_server.uri}", f"--mlflow.experiment={EXPERIMENT}"]

    return settings


@pytest.fixture(scope="module")
def undisturbed(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """A run with a sound server, and the seconds that it took."""
    output, began = tmp_path_factory.mktemp("undisturbed") / "run", time.monotonic()
    driver = start("reconstruct.py", settings(output))
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert "tracking" not in said
    return output, time.monotonic() - began


def tracked(server: MlflowServer, output: Path) -> Any:
    """The one MLflow run of this run directory, by what run.json says of it."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=server.uri)
    run = client.get_run(json.loads((output / "run.json").read_text())["mlflow"]["run_id"])
    same = client.search_runs([run.info.experiment_id], f"tags.`flashray.output` = '{output}'")
    assert len(same) == 1
    return run


def replay(output: Path) -> None:
    job = start("replay_tracking.py", ["--output", str(output)])
    said = job.communicate(timeout=120)
    assert job.returncode == 0, said


def check(server: MlflowServer, output: Path, undisturbed: Path) -> None:
    """The run is whole, its bytes are those of the undisturbed one, and MLflow says what summary.json says."""
    assert verify(str(output)) == Verified(images=IMAGES, restored=IMAGES)
    assert reconstructions(str(output)) == reconstructions(str(undisturbed))
    run = tracked(server, output)
    assert run.info.status == "FINISHED"
    assert run.data.metrics == flat_numbers(json.loads((output / "summary.json").read_text()))


@pytest.mark.fault
@pytest.mark.parametrize("fault", ["absent at start", "killed midway", "killed and restarted", "frozen throughout"])
def test_the_job_does_not_notice(
    fault: str,
    mlflow_server: MlflowServer,
    settings: Settings,
    undisturbed: tuple[Path, float],
    tmp_path: Path,
) -> None:
    output, began = tmp_path / "run", time.monotonic()
    if fault == "absent at start":
        mlflow_server.signal(signal.SIGKILL)
    elif fault == "frozen throughout":
        mlflow_server.signal(signal.SIGSTOP)
    try:
        driver = start("reconstruct.py", settings(output))
        if fault.startswith("killed"):
            wait_for(driver, lambda: committed(output))
            mlflow_server.signal(signal.SIGKILL)
            if fault == "killed and restarted":
                mlflow_server.start()
        _, said = driver.communicate(timeout=300)
        seconds = time.monotonic() - began
    finally:
        if fault == "frozen throughout":
            mlflow_server.signal(signal.SIGCONT)
        elif not mlflow_server.answers():
            mlflow_server.start()
    print(f"\n{fault}: exit code {driver.returncode}, {seconds:.1f} s; undisturbed {undisturbed[1]:.1f} s")
    assert driver.returncode == 0, said
    if fault != "killed and restarted":
        assert "replay_tracking.py" in said
    for _ in "ab":  # the second one adds nothing
        replay(output)
    check(mlflow_server, output, undisturbed[0])


@pytest.mark.fault
def test_a_killed_driver_is_running_then_killed_then_finished(
    mlflow_server: MlflowServer, settings: Settings, undisturbed: tuple[Path, float], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    driver = start("reconstruct.py", settings(output))
    wait_for(driver, lambda: committed(output))
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    assert tracked(mlflow_server, output).info.status == "RUNNING"  # nobody is left to say otherwise
    replay(output)
    assert tracked(mlflow_server, output).info.status == "KILLED"

    driver = start("reconstruct.py", settings(output))
    wait_for(driver, lambda: committed(output, 8) and tracked(mlflow_server, output).info.status == "RUNNING")
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=60)
    assert driver.returncode == 128 + signal.SIGTERM
    assert tracked(mlflow_server, output).info.status == "KILLED"

    driver = start("reconstruct.py", settings(output))
    _, said = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    check(mlflow_server, output, undisturbed[0])
