"""The demo: real photos degraded with mixed severity, restored by `flashray restore`.

Everything it makes is under demo-run/: the archive, the restored images, a contact sheet, the MLflow store.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from benchmarks.sample_photos import write_sample_archive
from flashray.cli import main as flashray
from flashray.recipe import load_recipe

FOLDER = Path("demo-run")
RECIPE = "gaussian_blur_flash_proximal"
IMAGES = 64


def main() -> int:
    """Exit code of `flashray restore`."""
    # a second thread saves nothing on small images, and every operation waits for it where other processes run
    torch.set_num_threads(1)
    shutil.rmtree(FOLDER, ignore_errors=True)
    archive, degradation = FOLDER / "archive", load_recipe(RECIPE).degradation
    write_sample_archive(archive, IMAGES, degradation.make(), degradation.noise_range[0])
    print(f"{IMAGES} crops of real photos, blurred by std 0.3 … 3.0 and with noise: {archive / 'degraded'}")
    command = ["restore", str(archive / "degraded"), str(FOLDER / "restored"), "--recipe", RECIPE]
    command += ["--manifest", str(archive / "manifest.csv"), "--references", str(archive / "clean")]
    print(f"flashray {' '.join(command)}", flush=True)
    return flashray(command)


if __name__ == "__main__":
    sys.exit(main())
