"""A small experiment on the tiny models, and runs of it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.run_experiment import BenchmarkConfig, benchmark
from flashray.pipeline.run_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.models import edit_json

EXPERIMENTS = Path(__file__).parents[2] / "benchmarks" / "experiments"
GRID: dict[str, Any] = {
    "kind": "comparison",
    "title": "A small grid",
    "tasks": [{"name": "blur", "degradation": {"settings": {"std": [0.3, 2.0], "kernel_size": 9}}}],
    "methods": [
        {"name": "AE", "baseline": "autoencoder"},
        {"name": "flash", "solver": {"name": "latent_dps", "steps": 20, "settings": {"dc_step": 0.1}}},
        {"name": "full", "start": {"mode": "full"}, "solver": {"name": "latent_dps", "steps": 20}},
    ],
    "pairs": [["flash", "full"]],
    "pictures": 2,
    "scales": {"smoke": {"images": 4, "full_images": 2, "steps": 6}},
}
Run = Callable[..., int]


@pytest.fixture(scope="module")
def encoders(tiny_models: TinyModels, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Severity encoders of three families, by family."""
    third = tmp_path_factory.mktemp("encoders") / "nonlinear"
    shutil.copytree(tiny_models.encoder, third)
    edit_json(third / "config.json", degradation="nonlinear_blur")
    return {
        "gaussian_blur": tiny_models.encoder,
        "random_inpainting": tiny_models.other_encoder,
        "nonlinear_blur": str(third),
    }


@pytest.fixture
def run(tiny_models: TinyModels, encoders: dict[str, str], archive: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(experiment, output, **config)`: an experiment is a name, or what its file holds. No LPIPS: it is slow."""
    monkeypatch.setenv("FLASHRAY_LPIPS_WEIGHTS", "/nowhere")

    def run(experiment: str | dict[str, Any], output: Path, **values: Any) -> int:
        if isinstance(experiment, dict):
            path = output.parent / "grid.yaml"
            path.write_text(yaml.safe_dump(experiment))
            experiment = str(path)
        settings: dict[str, Any] = {
            "photos": str(archive),
            "scale": "smoke",
            "prior": tiny_models.prior,
            "severity_encoders": encoders,
            "launcher": "local",
            "mlflow": TrackingConfig(enabled=False),
        }
        return benchmark(BenchmarkConfig(experiment, output=str(output), **settings | values), EXPERIMENTS)

    return run
