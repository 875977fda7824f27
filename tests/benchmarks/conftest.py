"""Runs of experiments on the tiny models."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.run_experiment import ExperimentConfig, run_experiment
from flashray.tracking.tracking_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.experiments import Run
from tests.support.models import edit_json


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
            "tracking": TrackingConfig(enabled=False),
        }
        return run_experiment(ExperimentConfig(experiment, output=str(output), **settings | values))

    return run
