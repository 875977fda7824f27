"""Severity encoders in MLflow's model registry: their folder as it is (safetensors, no pickle), with a signature."""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashray import storage
from flashray.errors import ConfigError, FlashrayError
from flashray.severity import SeverityEncoder
from flashray.tracking.client import brief, connect, experiment_id, load_mlflow

SCHEME = "models:/"
_FOLDER = "encoder"  # of the model's artifacts
_UNKNOWN = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


class Unreachable(ConfigError):
    """The registry does not answer."""


@dataclass(frozen=True)
class Registered:
    """A model that was fetched: `models:/NAME/VERSION`, and the folder of its files while this process lives."""

    uri: str
    folder: Path


def check_registry(name: str, alias: str, uri: str) -> None:
    """ConfigError where nothing could be registered under this name: bad names, no server."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise ConfigError(f"{name!r} is no name of a model; give letters, digits, '-', '_' and '.'")
    if not re.fullmatch(r"(?!(latest|v\d+)$)[\w-]+", alias, re.IGNORECASE):
        raise ConfigError(f"{alias!r} is no alias; give letters, digits, '-' and '_', and neither latest nor v1")
    load_mlflow()
    try:
        connect(uri).search_registered_models(max_results=1)
    except Exception as error:
        raise _unreachable(uri, error) from error


def register(
    encoder: SeverityEncoder, folder: Path, name: str, alias: str, uri: str, figures: Mapping[str, float]
) -> str:
    """A new version of a registered model, which the alias then names; `models:/NAME/VERSION`.

    The encoder is saved in `folder`; `uri` is the MLflow server or database; `figures` are the encoder's on validation
    photos. FlashrayError when MLflow does not take it.
    """
    load_mlflow()
    try:
        return _register(connect(uri), encoder, folder, name, alias, uri, figures)
    except Exception as error:
        raise FlashrayError(
            f"severity encoder {folder} is saved, and MLflow at {storage.redact(uri)} did not register it: "
            f"{brief(error)}. flashray register {folder} {name} --alias {alias} --tracking-uri {storage.redact(uri)} "
            "registers it"
        ) from error


def fetch(source: str, uri: str) -> Registered:
    """The files of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    ConfigError when there is no such model, version or alias, or it is none of ours; the known ones are named.
    Unreachable when the registry does not answer.
    """
    match = re.fullmatch(SCHEME + r"(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))", source)
    if match is None:
        raise ConfigError(f"severity encoder {source}: give models:/NAME@ALIAS or models:/NAME/VERSION")
    load_mlflow()
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    client, name = connect(uri), match["name"]
    folder = tempfile.mkdtemp(prefix="flashray-encoder-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        try:
            version = match["version"] or client.get_model_version_by_alias(name, match["alias"]).version
            files = client.get_model_version_download_uri(name, version)
        except MlflowException as error:
            if error.error_code in _UNKNOWN:
                raise _unknown(source, name, client, uri) from error
            raise
        found = Path(download_artifacts(artifact_uri=files, dst_path=folder, tracking_uri=uri))
    except ConfigError:
        raise
    except Exception as error:
        raise _unreachable(uri, error, source) from error
    if not (found / _FOLDER / "config.json").is_file():
        raise ConfigError(f"severity encoder {source} is no severity encoder; flashray register registers one")
    return Registered(f"{SCHEME}{name}/{version}", found / _FOLDER)


def _register(
    client: Any, encoder: SeverityEncoder, folder: Path, name: str, alias: str, uri: str, figures: Mapping[str, float]
) -> str:
    from mlflow.entities import LoggedModelOutput, Metric, Param
    from mlflow.exceptions import MlflowException

    facts = {"degradation": encoder.degradation, "noise_std": encoder.config.noise_std, "sha256": encoder.sha256}
    experiment = experiment_id(client, "flashray-models", uri)
    run = client.create_run(experiment, run_name=f"{name} {encoder.degradation}").info
    try:
        metrics = [Metric(which, float(value), run.start_time, 0) for which, value in figures.items()]
        client.log_batch(run.run_id, metrics=metrics, params=[Param(key, str(value)) for key, value in facts.items()])
        model = client.create_logged_model(experiment, name=name, source_run_id=run.run_id)
        with tempfile.TemporaryDirectory() as local:
            shutil.copytree(folder, Path(local, _FOLDER))
            described = _described(encoder, model, run.run_id)
            described.save(str(Path(local, "MLmodel")))
            client.log_model_artifacts(model.model_id, local)
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(run.run_id, [LoggedModelOutput(model.model_id, 0)])
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        made = client.create_model_version(
            name, model.artifact_location, run.run_id, tags=facts, model_id=model.model_id
        )
        client.set_registered_model_alias(name, alias, made.version)
    except Exception:
        client.set_terminated(run.run_id, "FAILED")
        raise
    client.set_terminated(run.run_id, "FINISHED")
    return f"{SCHEME}{name}/{made.version}"


def _described(encoder: SeverityEncoder, model: Any, run_id: str) -> Any:
    """What MLflow shows of the model: a flavour of our own, and what goes in and comes out."""
    import numpy as np
    from mlflow.models import Model, ModelSignature
    from mlflow.types import Schema, TensorSpec

    single = np.dtype(np.float32)
    y = TensorSpec(single, (-1, 3, -1, -1), "y_BCHW")
    z_hat = TensorSpec(single, (-1, encoder.config.latent_channels, -1, -1), "z_hat_BCHW")
    log_variance = TensorSpec(single, (-1, -1, -1), "log_variance_Bhw")
    signature = ModelSignature(inputs=Schema([y]), outputs=Schema([z_hat, log_variance]))
    ids = {"run_id": run_id, "model_uuid": model.model_id, "model_id": model.model_id}
    described = Model(artifact_path=model.artifact_location, signature=signature, **ids)
    described.add_flavor("flashray", data=_FOLDER, degradation=encoder.degradation)
    return described


def _unknown(source: str, name: str, client: Any, uri: str) -> ConfigError:
    """What is there instead."""
    found = {model.name: model for model in client.search_registered_models()}
    if name in found:
        aliases = ", ".join(f"@{alias} (version {version})" for alias, version in sorted(found[name].aliases.items()))
        there = f"{name} has {aliases or 'no alias'}"
    else:
        there = f"registered are {', '.join(sorted(found)) or 'no models'}"
    return ConfigError(f"severity encoder {source}: not in the registry at {storage.redact(uri)}; {there}")


def _unreachable(uri: str, error: Exception, source: str = "") -> Unreachable:
    what = f"severity encoder {source}: " if source else ""
    return Unreachable(
        f"{what}the model registry at {storage.redact(uri)} does not answer: {brief(error)}. Start it, name another by "
        "MLFLOW_TRACKING_URI, or take a folder"
    )
