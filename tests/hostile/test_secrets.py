"""Secrets in addresses reach no record and no message; addresses of databases lead where they say."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from flashray.cli import main
from flashray.errors import ConfigError
from flashray.pipeline.cluster import connect
from flashray.pipeline.run_config import check, to_dict, to_yaml
from flashray.storage.working_folder import refuse_relative
from flashray.tracking.client import brief, default_uri, page
from flashray.tracking.tracking_config import TrackingConfig
from tests.support.runs import changed, config_of

ADDRESSES = [
    "http://me:hunter2@host/photos",
    "https://me:hun/ter2@host/photos",
    "https://hunter2@host/photos",
    "https://host/photos?X-Amz-Signature=hunter2&x=1",
    "https://host/photos?sig=hunter2",
    "s3://me:hunter2@bucket/photos",
    "gs://bucket/photos?token=hunter2",
    "ftp://me:hunter2@host/photos",
    "nosuch://me:hunter2@host/photos",
]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", ["archive", "output", "manifest", "references"])
def test_row_15_addresses_with_secrets_are_refused(address: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(changed(config_of(), **{name: address}))
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("verb", ["verify", "report", "replay", "compare"])
def test_row_15_verbs_do_not_repeat_them(address: str, verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, address]) in (1, 2)
    told = capsys.readouterr()
    assert "ter2" not in told.out + told.err


@pytest.mark.parametrize("option", ["--prior", "--start.severity_encoder", "--recipe", "--config"])
def test_row_15_models_and_recipes(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"x")
    argv = ["restore", str(tmp_path / "photos"), str(tmp_path / "out"), "--recipe", "gaussian_blur_flash_proximal"]
    for address in ADDRESSES:
        assert main([*argv, option, address]) == 2, address
        told = capsys.readouterr()
        assert "ter2" not in told.out + told.err


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:hun/ter2@db/mlflow",
        "postgresql://me:hun@ter2@db/mlflow",
        "http://host:5000/?token=hunter2",
        "https://hunter2@host",
    ],
)
def test_row_16_tracking_addresses(uri: str) -> None:
    asked = changed(config_of(), tracking=TrackingConfig(tracking_uri=uri))
    for text in (str(to_dict(asked)), to_yaml(asked), page(uri), brief(OSError(f"cannot reach {uri} now"))):
        assert "ter2" not in text
    assert yaml.safe_load(to_yaml(asked))["io"]["archive"] == "/a"


def test_row_16_the_address_of_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://me:hun/ter2@head.invalid:10001")
    with pytest.raises(ConfigError) as caught:
        refuse_relative(archive="photos")
    assert "ter2" not in str(caught.value)
    assert connect.__doc__


@pytest.mark.parametrize("folder", ["a?b", "a%20b", "a#b", "a b", "100%", "ü", "?token=x"])
def test_row_26_databases_beside_outputs_with_odd_names(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.engine import make_url

    from flashray.tracking.client import _artifacts

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    uri = default_uri(str(tmp_path / folder / "out"))
    assert make_url(uri).database == str(tmp_path / folder / "mlflow.db")
    assert not make_url(uri).query
    assert _artifacts(uri) == (tmp_path / folder / "mlartifacts").as_uri()
