"""The demo: real photos degraded with mixed severity, restored by jobs/reconstruct.py with Flash(Latent-DPS).

Everything it makes is under demo-run/: the archive, the reconstructions, a contact sheet, the MLflow store.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import yaml
from reconstruct import main as reconstruct

from flashray.degradations import make_degradation
from flashray.sample_photos import write_sample_archive

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "flashray" / "recipes" / "gaussian_blur_flash_latent_dps.yaml"
IMAGES = 64


def main() -> int:
    """Exit code of jobs/reconstruct.py."""
    folder = ROOT / "demo-run"
    shutil.rmtree(folder, ignore_errors=True)
    family = yaml.safe_load(RECIPE.read_text())["degradation"]
    degradation = make_degradation(family["name"], family["settings"])
    write_sample_archive(folder / "archive", IMAGES, degradation, family["noise_std"])
    print(f"{IMAGES} crops of real photos, blurred by std 0.3 … 3.0 and with noise: {folder / 'archive' / 'degraded'}")
    return reconstruct(
        [
            *("--config", str(RECIPE)),
            *("--archive", str(folder / "archive" / "degraded")),
            *("--references", str(folder / "archive" / "clean")),
            *("--manifest", str(folder / "archive" / "manifest.csv")),
            *("--output", str(folder / "run")),
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
