"""Relative paths are refused where they would mean another folder, by every job and before any work."""

from __future__ import annotations

import dataclasses

import pytest

from benchmarks.run_experiment import ExperimentConfig, run_experiment
from flashray.errors import ConfigError
from flashray.storage.working_folder import refuse_relative
from flashray.training.train_config import LaunchConfig
from flashray.training.train_severity import TrainSeverityConfig


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("address", [None, "", "local"])
def test_on_this_machine_alone_every_path_will_do(monkeypatch: pytest.MonkeyPatch, address: str | None):
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    refuse_relative(archive="photos", output="run")


def test_a_submitted_job_refuses_relative_paths(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    refuse_relative(archive="s3://bucket/photos", output="/runs/one", manifest=None)
    with pytest.raises(ConfigError, match=r"manifest is 'm.csv'.*temporary copy of the working folder.*s3://bucket"):
        refuse_relative(archive="/photos", manifest="m.csv")


def test_a_cluster_elsewhere_refuses_relative_paths_and_its_password_is_not_shown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:secret@head:10001")
    with pytest.raises(
        ConfigError, match=r"output is 'run'.*RAY_ADDRESS=ray://\*\*\*@head:10001 do not have"
    ) as caught:
        refuse_relative(output="run")
    assert "secret" not in str(caught.value)


def test_training_and_experiments_ask_for_absolute_paths_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError, match=r"launch\.storage is 'runs/training'"):  # the default one
        TrainSeverityConfig("/photos", "/val", "/encoder")
    sound = TrainSeverityConfig("s3://bucket/photos", "/val", "/encoder", LaunchConfig(storage="s3://bucket/states"))
    with pytest.raises(ConfigError, match="photos is 'photos'"):
        dataclasses.replace(sound, photos="photos")
    with pytest.raises(ConfigError, match="photos is 'photos'"):
        run_experiment(ExperimentConfig("comparison", photos="photos", output="/run"))


def test_a_finished_model_goes_to_a_folder():
    with pytest.raises(ConfigError, match=r"output is s3://bucket/encoder: training needs a folder"):
        TrainSeverityConfig("/photos", "/val", "s3://bucket/encoder")
