"""Severity encoders in MLflow's registry, on an embedded database; from training to the workers of a run."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from flashray.cli import main
from flashray.errors import ConfigError, FlashrayError
from flashray.pipeline.models import load_models
from flashray.pipeline.run import restore_archive
from flashray.severity import SeverityEncoder, Start, load_severity_encoder
from flashray.tracking.model_registry import Unreachable, check_registry, fetch, register
from flashray.tracking.tracking_config import TrackingConfig
from tests.conftest import TinyModels
from tests.support.runs import MakeConfig, changed, record, restored

NOWHERE = "http://127.0.0.1:1"  # nobody listens there


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry')}/mlflow.db"


def registered(source: str, name: str, uri: str, alias: str = "champion") -> str:
    return register(load_severity_encoder(source), Path(source), name, alias, uri, {"spearman_sigma": 0.9})


def altered(source: str, folder: Path) -> str:
    """The same encoder with other weights."""
    encoder = SeverityEncoder.from_pretrained(source)
    with torch.no_grad():
        encoder.net.heads[1][-1].bias += 0.5
    encoder.save_pretrained(folder)
    return str(folder)


def test_a_registered_encoder_is_the_same_encoder(tiny_models: TinyModels, uri: str, tmp_path: Path) -> None:
    import mlflow

    check_registry("same", "champion", uri)
    assert registered(tiny_models.encoder, "same", uri) == "models:/same/1"
    assert registered(altered(tiny_models.encoder, tmp_path / "other"), "same", uri) == "models:/same/2"
    hashes = {one: load_severity_encoder(one).sha256 for one in (tiny_models.encoder, str(tmp_path / "other"))}
    for source, version, folder in (
        ("models:/same@champion", 2, str(tmp_path / "other")),
        ("models:/same/1", 1, tiny_models.encoder),
    ):
        found = fetch(source, uri)
        assert found.uri == f"models:/same/{version}"
        assert load_severity_encoder(str(found.folder)).sha256 == hashes[folder]
        assert not [path for path in found.folder.parent.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".bin")]
    mlflow.set_tracking_uri(uri)
    signature = mlflow.models.get_model_info("models:/same@champion").signature
    assert [(one.name, one.shape) for one in signature.inputs] == [("y_BCHW", (-1, 3, -1, -1))]
    assert [(one.name, one.shape) for one in signature.outputs] == [
        ("z_hat_BCHW", (-1, 4, -1, -1)),
        ("log_variance_Bhw", (-1, -1, -1)),
    ]
    client = mlflow.MlflowClient()
    version = client.get_model_version_by_alias("same", "champion")
    assert version.tags["sha256"] == hashes[str(tmp_path / "other")]
    run = client.get_run(version.run_id)
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"spearman_sigma": 0.9})
    assert run.data.params["degradation"] == "gaussian_blur"


def test_what_is_not_there_is_named(tiny_models: TinyModels, uri: str) -> None:
    registered(tiny_models.encoder, "known", uri, "best")
    with pytest.raises(ConfigError, match=r"models:/none@champion: not in the registry .*; registered are .*known"):
        fetch("models:/none@champion", uri)
    with pytest.raises(ConfigError, match=r"models:/known@champion: .*; known has @best \(version 1\)"):
        fetch("models:/known@champion", uri)
    with pytest.raises(ConfigError, match=r"models:/known/7: not in the registry"):
        fetch("models:/known/7", uri)
    with pytest.raises(ConfigError, match="give models:/NAME@ALIAS or models:/NAME/VERSION"):
        fetch("models:/known", uri)
    with pytest.raises(
        Unreachable, match=r"models:/known@best: the model registry at http.* does not answer: .*refused"
    ):
        fetch("models:/known@best", NOWHERE)


def test_a_registry_is_looked_at_before_hours_of_training(tiny_models: TinyModels, uri: str) -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        check_registry("name", "champion", NOWHERE)
    with pytest.raises(ConfigError, match="'a/b' is no name of a model"):
        check_registry("a/b", "champion", uri)
    for alias in ("", "a.b", "latest", "V1"):
        with pytest.raises(ConfigError, match=f"'{alias}' is no alias"):
            check_registry("name", alias, uri)
    again = f"flashray register {tiny_models.encoder} name --alias vague --tracking-uri {NOWHERE} registers it"
    with pytest.raises(FlashrayError, match=rf"is saved, and MLflow at .* did not register it: .*{re.escape(again)}"):
        registered(tiny_models.encoder, "name", NOWHERE, "vague")


def test_a_card_may_lack_figures_and_may_not_be_damaged(
    tiny_models: TinyModels, uri: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_models.encoder, tmp_path / "encoder")
    for text, code in (("{", 2), ("[]", 2), ('{"figures": {"psnr": "high"}}', 2), ("{}", 0)):
        (folder / "card.json").write_text(text)
        assert main(["register", str(folder), "carded", "--tracking-uri", uri]) == code
        assert ("card.json is damaged" in capsys.readouterr().err) == (code == 2)


def test_what_is_no_encoder_of_ours_is_refused(uri: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    (tmp_path / "MLmodel").write_text("flavors: {}\n")
    client.create_registered_model("foreign")
    client.create_model_version("foreign", str(tmp_path))
    with pytest.raises(ConfigError, match="models:/foreign/1 is no severity encoder"):
        fetch("models:/foreign/1", uri)


@pytest.mark.slow
def test_a_run_takes_its_encoder_from_the_registry(
    make: MakeConfig,
    tiny_models: TinyModels,
    archive: Path,
    uri: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    registered(tiny_models.encoder, "tiny", uri)
    start = Start(severity_encoder="models:/tiny@champion")
    tracking = TrackingConfig(tracking_uri=uri, enabled=False)
    config = make(archive, tmp_path / "run", start=start, tracking=tracking)
    plain = make(archive, tmp_path / "plain")
    assert restore_archive(config) == restore_archive(plain) == 0
    assert restored(config.io.output) == restored(plain.io.output)
    found = json.loads((record(tmp_path / "run") / "run.json").read_text())
    assert found["registered"] == {"severity_encoder": "models:/tiny/1"}
    assert found["config"]["recipe"]["start"]["severity_encoder"] == "models:/tiny@champion"

    away = changed(config, tracking=TrackingConfig(tracking_uri=NOWHERE, enabled=False))
    assert load_models(away).identity() == load_models(config).identity()  # the run directory has a copy
    assert "The run goes on with its copy" in caplog.text
    with pytest.raises(ConfigError, match="does not answer"):
        load_models(changed(away, output=str(tmp_path / "new")))

    registered(altered(tiny_models.encoder, tmp_path / "other"), "tiny", uri)  # the alias moves
    with pytest.raises(ConfigError, match=r"weights\.severity_encoder is '\w+' there and '\w+' here"):
        restore_archive(config)
    pinned = dataclasses.replace(start, severity_encoder="models:/tiny/1")
    assert restore_archive(changed(config, start=pinned)) == 0


@pytest.mark.slow
def test_an_encoder_on_s3(s3: str, tiny_models: TinyModels) -> None:
    from flashray import storage

    for path in Path(tiny_models.encoder).iterdir():
        storage.put_bytes(f"{s3}/encoder/{path.name}", path.read_bytes())
    assert load_severity_encoder(f"{s3}/encoder").sha256 == load_severity_encoder(tiny_models.encoder).sha256
    with pytest.raises(ConfigError, match="not found"):
        load_severity_encoder(f"{s3}/nothing")
