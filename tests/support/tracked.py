"""A tracked run, and the events that its folder keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

START: dict[str, Any] = {
    "name": "a run",
    "params": {"solver.steps": 20, "degradation.settings.std": [0.3, 3.0]},
    "tags": {"flashray.method": "flash(latent_dps)"},
    "config_yaml": "seed: 0\n",
}


def events(output: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(Path(output, "tracking").glob("0*.json"))]
