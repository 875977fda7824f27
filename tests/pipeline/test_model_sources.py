"""A run stays with the models that it began with, wherever they come from."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline.open_run import open_run
from flashray.pipeline.run_config import RunConfig, check
from flashray.pipeline.worker_settings import WorkerSettings, hashes
from flashray.prior import load_prior
from flashray.recipe import SolverConfig
from flashray.severity import Start
from flashray.tracking import TrackingConfig
from tests.conftest import TinyModels
from tests.support.fault_harness import PLAIN_RECIPE
from tests.support.hub_server import TOKEN, Hub, point_at, serving
from tests.support.models import edit_json
from tests.support.runs import changed, config_of, record, summary_of

ROOT = Path(__file__).parents[2]
Make = Callable[..., RunConfig]


@pytest.fixture
def hub(tiny_models: TinyModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the tiny models, which this process asks."""
    with serving() as hub:
        point_at(hub, tmp_path / "cache", monkeypatch)
        hub.put("me/prior", Path(tiny_models.prior))
        hub.put("me/encoder", Path(tiny_models.encoder))
        yield hub


@pytest.fixture
def moved(tiny_models: TinyModels, tmp_path: Path) -> Path:
    """The prior that comes after the tiny one: another scale of its latents, which the encoder does not know."""
    folder = tmp_path / "moved"
    shutil.copytree(tiny_models.prior, folder)
    edit_json(folder / "vqvae" / "config.json", scaling_factor=3.0)
    return folder


@pytest.fixture
def make(archive: Path, tmp_path: Path) -> Make:
    def make(prior: str = "me/prior", encoder: str = "hf://me/encoder@main", **values: Any) -> RunConfig:
        settings: dict[str, Any] = {
            "measurement": "simulated",
            "prior": prior,
            "start": Start(severity_encoder=encoder),
            "solver": SolverConfig(steps=20, settings={"dc_step": 0.1}),
            "tracking": TrackingConfig(enabled=False),
        }
        return check(config_of(str(archive), str(tmp_path / "run"), **settings | values))

    return make


def begin(config: RunConfig) -> dict[str, Any]:
    """run.json after a start on this configuration."""
    run = open_run(config)
    run.open_record()
    found: dict[str, Any] = json.loads((record(config.io.output) / "run.json").read_text())
    return found


def test_hub_ids_are_pinned_in_the_record_and_for_the_workers(hub: Hub, make: Make) -> None:
    config = make()
    found = begin(config)
    pins = {id: hub.models[f"me/{id}"].revisions["main"] for id in ("prior", "encoder")}
    assert found["pinned"] == {
        "hf://me/prior": f"hf://me/prior@{pins['prior']}",
        "hf://me/encoder@main": f"hf://me/encoder@{pins['encoder']}",
    }
    recipe = open_run(config).config.recipe
    assert recipe.prior == f"hf://me/prior@{pins['prior']}"
    assert recipe.start.severity_encoder == f"hf://me/encoder@{pins['encoder']}"
    assert found["config"]["recipe"]["prior"] == recipe.prior


def test_a_resumed_run_keeps_the_commit_and_another_one_does_not(
    hub: Hub, moved: Path, make: Make, tmp_path: Path
) -> None:
    first = begin(make())
    hub.put("me/prior", moved)
    assert begin(make()) == first  # nothing was written
    assert open_run(make("hf://me/prior")).models.prior.sha256 == first["fingerprint"]["weights.prior"]
    # what is asked for by another name is looked up, and is another prior
    hub.models["me/prior"].revisions["v2"] = hub.models["me/prior"].revisions["main"]
    for config in (make("me/prior@v2"), changed(make(), output=str(tmp_path / "new"))):
        with pytest.raises(ConfigError, match="was trained for another prior"):
            open_run(config)
    # a run that is to be overwritten does not count
    with pytest.raises(ConfigError, match="was trained for another prior"):
        open_run(make(overwrite="run"))


def test_no_commit_is_sought_for_an_encoder_that_is_not_used(hub: Hub, make: Make) -> None:
    config = changed(make(), start=Start(mode="full", severity_encoder="me/nothing"))
    assert list(begin(config)["pinned"]) == ["hf://me/prior"]


def test_folders_are_not_pinned(tiny_models: TinyModels, make: Make) -> None:
    assert "pinned" not in begin(make(tiny_models.prior, tiny_models.encoder))


def test_a_worker_refuses_a_model_that_has_changed(tiny_models: TinyModels, moved: Path, make: Make) -> None:
    folder = moved.with_name("prior")
    shutil.copytree(tiny_models.prior, folder)
    config = changed(make(str(folder)), start=Start(mode="full"))
    weights = hashes(load_prior(str(folder)), None)
    work = WorkerSettings.of(config, "cpu", 1, lpips=False, weights=weights)
    assert work.restorer().prior.sha256 == weights["prior"]
    shutil.rmtree(folder)
    moved.rename(folder)
    with pytest.raises(FlashrayError, match=f"the prior {folder} has changed since the run began, or is another one"):
        work.restorer()


def test_a_prior_that_is_not_as_its_configs_say_is_named_when_a_run_begins(
    tiny_models: TinyModels, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    """Random weights do not give a picture back. A run that has begun is not checked again."""
    config = make(tiny_models.prior, tiny_models.encoder)
    begin(config)
    assert f"prior {tiny_models.prior}: the autoencoder gives a test picture back with" in caplog.text
    caplog.clear()
    begin(config)
    assert "test picture" not in caplog.text


def test_the_bundled_prior_is_not_checked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashray.pipeline.models.check_prior", lambda _: pytest.fail("checked"))
    begin(make("bundled", "bundled:gaussian_blur"))


@pytest.mark.slow
def test_every_worker_of_a_resumed_run_uses_the_pinned_commit(
    hub: Hub, moved: Path, archive: Path, tmp_path: Path
) -> None:
    """A quote, then main moves on, then the run: with a token, which is in nothing that is written or said."""
    output = tmp_path / "run"
    for model in hub.models.values():
        model.private = True
    settings = {
        "archive": archive,
        "output": output,
        "recipe": PLAIN_RECIPE,
        "measurement": "simulated",
        "prior": "me/prior",
        "start.severity_encoder": "me/encoder",
        "solver.steps": 20,
        "metrics": "[psnr]",
        "unit_images": 4,
        "tracking.tracking_uri": f"sqlite:///{tmp_path}/mlflow.db",
    }
    command = [sys.executable, str(ROOT / "jobs" / "reconstruct.py"), *(f"--{k}={v}" for k, v in settings.items())]
    environment = (
        os.environ | hub.environment | {"PYTHONPATH": str(ROOT), "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    )

    def start(*more: str) -> str:
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    said = start("--plan_only=true")
    hub.put("me/prior", moved)
    hub.asked.clear()
    said += start()
    assert summary_of(output)["restored"] == 10
    assert not hub.fetched()
    assert not [path for path in hub.asked if "/revision/" in path]
    assert TOKEN not in said
    for path in (path for folder in (output, tmp_path) for path in folder.rglob("*") if path.is_file()):
        assert TOKEN.encode() not in path.read_bytes(), path
