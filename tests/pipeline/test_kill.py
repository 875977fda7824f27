"""Killing the driver midway, and running the same command again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flashray.config import parse_args
from flashray.images import encode_png
from flashray.pipeline.run import reconstruct
from flashray.pipeline.state import State
from tests.conftest import TinyModels
from tests.models import SIDE
from tests.pipeline.test_run import reconstructions

ROOT = Path(__file__).parents[2]
IMAGES = 16


@pytest.fixture
def photos(tmp_path: Path, photo: torch.Tensor) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(IMAGES):
        (folder / f"{i:02d}.png").write_bytes(encode_png(photo[:, 20 * i : 20 * i + SIDE, 200 : 200 + SIDE]))
    return folder


def command(models: TinyModels, archive: Path, output: Path) -> list[str]:
    settings = {
        "archive": archive,
        "output": output,
        "measurement": "simulated",
        "prior": models.prior,
        "start.severity_encoder": models.encoder,
        "solver.steps": 20,
        "solver.settings.dc_step": 0.1,
        "metrics": "[psnr]",
        "unit_images": 1,
        "slots": 1,
        "mlflow.enabled": "false",
    }
    return [f"--{name}={value}" for name, value in settings.items()]


def test_every_image_once_and_the_same_bytes(
    tiny_models: TinyModels, photos: Path, tmp_path: Path, ray_cluster: None
) -> None:
    argv = command(tiny_models, photos, tmp_path / "killed")
    commits = tmp_path / "killed" / "commits"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    driver = subprocess.Popen([sys.executable, str(ROOT / "jobs" / "reconstruct.py"), *argv], env=environment)
    deadline = time.monotonic() + 240
    while not (commits.exists() and any(commits.iterdir())):
        assert driver.poll() is None, "the driver ended before its first commit"
        assert time.monotonic() < deadline, "the driver is too slow"
        time.sleep(0.005)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    time.sleep(1)  # its cluster dies with it
    state = State.read(str(tmp_path / "killed"))
    assert 0 < len(state.units) < len(set(state.planned["unit_id"].to_pylist())), "killed too early or too late"
    before = {path: path.stat().st_mtime_ns for path in commits.iterdir()}

    assert reconstruct(parse_args(argv)) == 0
    state = State.read(str(tmp_path / "killed"))
    assert sorted(state.results["key"].to_pylist()) == sorted(path.name for path in photos.iterdir())
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in before.items())  # nothing was done twice

    assert reconstruct(parse_args(command(tiny_models, photos, tmp_path / "undisturbed"))) == 0
    killed, undisturbed = (reconstructions(str(tmp_path / name)) for name in ("killed", "undisturbed"))
    assert len(killed) == IMAGES
    assert killed == undisturbed
