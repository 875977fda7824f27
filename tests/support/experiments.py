"""A small experiment for the tiny models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Run = Callable[..., int]
GRID: dict[str, Any] = {
    "kind": "comparison",
    "title": "A small grid",
    "tasks": [{"name": "blur", "degradation": {"settings": {"std": [0.3, 2.0], "kernel_size": 9}}}],
    "methods": [
        {"name": "AE", "baseline": "autoencoder"},
        {"name": "flash", "solver": {"name": "latent_dps", "steps": 20, "settings": {"dc_step": 0.1}}},
        {"name": "full", "start": {"mode": "full"}, "solver": {"name": "latent_dps", "steps": 20}},
    ],
    "pairs": [["flash", "full"]],
    "pictures": 2,
    "scales": {"smoke": {"images": 4, "full_images": 2, "steps": 6}},
}
