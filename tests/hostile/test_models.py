"""Models that are damaged or malicious; tests/prior/test_loading.py has the rest of these rows."""

from __future__ import annotations

import json
import math
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashray.checkpoints import warn_of_another_noise
from flashray.errors import ConfigError
from flashray.prior import load_prior
from flashray.severity import load_severity_encoder
from tests.conftest import TinyModels

VALUES: list[Any] = [None, [], {}, "x", -3, 0, 100_000, 10**30, math.nan, math.inf, True, [-1], ["a"], {"a": 1}, [[1]]]
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def models(tiny_models: TinyModels, tmp_path: Path) -> Path:
    shutil.copytree(tiny_models.prior, tmp_path / "prior")
    shutil.copytree(tiny_models.encoder, tmp_path / "encoder")
    return tmp_path


def load(folder: Path, kind: str) -> None:
    """ConfigError, or a model."""
    if kind == "prior":
        load_prior(str(folder / "prior"))
    else:
        encoder = load_severity_encoder(str(folder / "encoder"))
        warn_of_another_noise("it", encoder.noise_range, (0.05, 0.05))


def test_row_05_an_index_that_names_other_files_than_safetensors(models: Path) -> None:
    folder = models / "prior" / "unet"
    folder = folder if folder.is_dir() else next(p.parent for p in (models / "prior").glob("*/" + WEIGHTS))
    torch.save({}, folder / "weights.bin")
    for name in ("weights.bin", "../encoder/" + WEIGHTS, "/etc/passwd", "absent.safetensors"):
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
        with pytest.raises(ConfigError, match=r"index\.json: names"):
            load_prior(str(models / "prior"))


@pytest.mark.parametrize("kind", ["prior", "encoder"])
def test_row_06_weights_that_lack_tensors_or_hold_no_numbers(models: Path, kind: str) -> None:
    path = sorted((models / kind).rglob(WEIGHTS))[-1]
    good = load_file(path)
    name = sorted(name for name, value in good.items() if value.is_floating_point() and value.numel() > 1)[0]
    cut = {key: value for key, value in good.items() if key != name}
    for bad in (
        cut,
        good | {"stranger": torch.zeros(1)},
        good | {name: good[name] * math.nan},
        good | {name: good[name] / 0},
    ):
        save_file(bad, path)
        with pytest.raises(ConfigError, match=rf"{name}|stranger|NaN or infinite"):
            load(models, kind)
    for data in (b"", b"\xff" * 64, path.read_bytes()[:100]):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="not a readable safetensors file"):
            load(models, kind)


@pytest.mark.hostile
@pytest.mark.parametrize("kind", ["prior", "encoder"])
def test_row_24_every_value_of_every_config(models: Path, kind: str) -> None:
    """Each is refused by name or makes a model; nothing else happens."""
    for path in sorted((models / kind).rglob("*.json")):
        good = json.loads(path.read_text())
        for key in good:
            for value in VALUES:
                path.write_text(json.dumps(good | {key: value}))
                with suppress(ConfigError):
                    load(models, kind)
        path.write_text(json.dumps(good))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"a": 1, "a": 2}', "\0"])
@pytest.mark.parametrize("kind", ["prior", "encoder"])
def test_row_24_configs_that_are_no_objects(models: Path, kind: str, text: str) -> None:
    for path in sorted((models / kind).rglob("*.json")):
        good = path.read_bytes()
        path.write_text(text)
        with pytest.raises(ConfigError):
            load(models, kind)
        path.write_bytes(good)
