"""What a user installs: a wheel in an empty virtual environment restores a folder, without the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from flashray.images import encode_png, open_image

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(one) for one in command], cwd=cwd, env=environment, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_wheel_restores_a_folder(photo: torch.Tensor, tmp_path: Path) -> None:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").glob("flashray-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert "flashray/recipes/gaussian_blur_flash_proximal.yaml" in names
    assert "flashray/assets/prior/model_index.json" in names
    assert not [name for name in names if name.split("/")[0] in ("benchmarks", "tests", "jobs")]

    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    programs = tmp_path / "venv" / "bin"
    run(programs / "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", wheel, cwd=tmp_path)
    (tmp_path / "photos").mkdir()
    for i in range(3):
        (tmp_path / "photos" / f"{i}.png").write_bytes(encode_png(photo[:, 100:228, 60 * i : 60 * i + 128]))
    command = [programs / "flashray", "restore", "photos", "restored", "--recipe", "gaussian_blur_flash_proximal"]
    said = run(*command, "--degradation.settings.std", "[1.0, 1.0]", cwd=tmp_path)
    assert "3 of 3 images restored" in said
    for i in range(3):
        assert open_image((tmp_path / "restored" / f"{i}.png").read_bytes()).pixels.shape == (3, 128, 128)
    assert run(programs / "flashray", "verify", "restored", cwd=tmp_path).splitlines()[-1] == "complete"
    code = (
        "import flashray; r = flashray.load('gaussian_blur_flash_proximal'); print(r('photos/0.png', blur_std=1.0).nfe)"
    )
    assert run(programs / "python", "-c", code, cwd=tmp_path).startswith("[")
