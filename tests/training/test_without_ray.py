"""Training in this process needs neither Ray nor MLflow nor a client of S3: a bare machine with a GPU has none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from flashray.images import encode_png
from tests.conftest import TinyModels

BLOCKED = """
import sys

class Blocker:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.split(".")[0] in ("ray", "mlflow", "s3fs", "boto3", "botocore", "aiobotocore"):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocker)
from flashray.cli import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_severity_encoder_trains_without_ray(tiny_models: TinyModels, photo: torch.Tensor, tmp_path: Path) -> None:
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for i in range(4):
            (tmp_path / folder / f"{i}.png").write_bytes(encode_png(photo[:, 40 * i : 40 * i + 64, 100:164]))
    command = ["train", "severity", "--photos", str(tmp_path / "train"), "--val-photos", str(tmp_path / "val")]
    command += ["--prior", tiny_models.prior, "--output", str(tmp_path / "encoder"), "--launch.launcher", "local"]
    command += ["--launch.storage", str(tmp_path / "runs"), "--loop.epochs", "1", "--loop.batch-size", "2"]
    command += ["--severity.widths", "[8,12]", "--severity.blocks", "[1,1]"]
    call = [sys.executable, "-c", BLOCKED, *command]
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # a tiny network's threads only wait for each other
    done = subprocess.run(call, capture_output=True, text=True, timeout=300, env=alone)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "encoder" / "config.json").is_file()
