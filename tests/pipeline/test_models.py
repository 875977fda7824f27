"""The models of a run: what is warned of, and what is refused."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flashray.errors import ConfigError
from flashray.pipeline.models import load_models
from flashray.pipeline.run_config import RunConfig, check
from flashray.recipe import DegradationConfig, SolverConfig
from flashray.severity import Start
from tests.conftest import TinyModels
from tests.support.models import edit_json
from tests.support.runs import config_of

Make = Callable[..., RunConfig]


@pytest.fixture
def make(tiny_models: TinyModels, archive: Path, tmp_path: Path) -> Make:
    """Configurations of the tiny models on the small archive."""

    def make(**values: Any) -> RunConfig:
        settings = {
            "measurement": "simulated",
            "prior": tiny_models.prior,
            "start": Start(severity_encoder=tiny_models.encoder),
            "solver": SolverConfig(steps=20),
        }
        return check(config_of(str(archive), str(tmp_path / "run"), **settings | values))

    return make


def test_an_encoder_of_another_degradation_warns_with_both_names(
    make: Make, tiny_models: TinyModels, caplog: pytest.LogCaptureFixture
) -> None:
    config = make(start=Start(severity_encoder=tiny_models.other_encoder))
    with caplog.at_level(logging.WARNING):
        load_models(config)
    assert "random_inpainting" in caplog.text
    assert "gaussian_blur" in caplog.text


@pytest.mark.parametrize(
    ("trained", "noise", "warns"),
    [
        (0.05, 0.05, False),
        (0.05, 0.06, False),
        (0.05, 0.1, True),
        (0.05, 0.02, True),
        (0.05, [0.05, 0.2], True),
        ([0.01, 0.2], [0.02, 0.2], False),
        ([0.01, 0.2], 0.4, True),
    ],
)
def test_an_encoder_of_much_other_noise_warns_with_both_numbers(
    trained: float | list[float],
    noise: float | list[float],
    warns: bool,
    make: Make,
    tmp_path: Path,
    tiny_models: TinyModels,
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = tmp_path / "encoder"
    shutil.copytree(tiny_models.encoder, encoder)
    edit_json(encoder / "config.json", noise_std=trained)
    degradation, start = DegradationConfig(noise_std=noise), Start(severity_encoder=str(encoder))
    with caplog.at_level(logging.WARNING):
        load_models(make(degradation=degradation, start=start))
    assert (f"was trained with noise_std {trained}, and the measurements have {noise}" in caplog.text) == warns
    assert ("noise_std" in caplog.text) == warns


def test_an_encoder_of_another_prior_is_refused(make: Make, tmp_path: Path, tiny_models: TinyModels) -> None:
    other = tmp_path / "prior"
    shutil.copytree(tiny_models.prior, other)
    (other / "latent_statistics.json").write_text(json.dumps({"mean": [0.0] * 4, "std": [2.0] * 4}))
    with pytest.raises(ConfigError, match="trained for another prior"):
        load_models(make(prior=str(other)))


def test_lpips_without_weights_says_why(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHRAY_LPIPS_WEIGHTS", str(tmp_path / "absent.safetensors"))
    models = load_models(make(metrics=["psnr", "lpips"]))
    assert not models.lpips
    assert "absent.safetensors" in models.unavailable["lpips"]
    fixed = DegradationConfig(settings={"std": [1.0, 1.0]})
    unscored = load_models(make(metrics=["lpips"], measurement="observed", degradation=fixed))
    assert unscored.unavailable == {}  # without references nobody asks for it
