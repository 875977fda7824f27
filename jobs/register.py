"""Register a saved severity encoder: python jobs/register.py --encoder FOLDER --name NAME [--alias champion]."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from flashray.cli import run
from flashray.prior import bundled
from flashray.severity import load_severity_encoder
from flashray.tracking import default_uri
from flashray.tracking.model_registry import check_registry, register


@dataclass(frozen=True)
class RegisterConfig:
    """What to register as what.

    Attributes:
        encoder: folder of a severity encoder, or bundled:NAME.
        name: of the registered model, which gets a new version.
        alias: names that version from now on.
        tracking_uri: an MLflow server or database; default MLFLOW_TRACKING_URI, else mlflow.db beside the folder.
    """

    encoder: str
    name: str
    alias: str = "champion"
    tracking_uri: str | None = None


def main(config: RegisterConfig) -> None:
    encoder = load_severity_encoder(config.encoder)
    inside = config.encoder.startswith("bundled:")
    folder = bundled("severity", config.encoder.removeprefix("bundled:")) if inside else Path(config.encoder)
    uri = config.tracking_uri or default_uri("encoder" if inside else config.encoder)
    check_registry(config.name, config.alias, uri)
    card = folder / "card.json"
    figures = json.loads(card.read_text())["figures"] if card.is_file() else {}
    made = register(encoder, folder, config.name, config.alias, uri, figures)
    print(f"{made}, models:/{config.name}@{config.alias}")


if __name__ == "__main__":
    sys.exit(run(RegisterConfig, main))
