"""flashray restores archives of degraded images with latent-diffusion solvers; an image costs what its damage needs.

import flashray

restorer = flashray.load("gaussian_blur_flash_proximal")   # plain torch
restored = restorer("old.png", blur_std=1.5)
restored.pil().save("new.png")

flashray.restore("photos/", "restored/", recipe="gaussian_blur_flash_proximal")   # the job, on Ray
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashray.loading import load
    from flashray.pipeline.restore import restore
    from flashray.recipe import Recipe
    from flashray.restorer import Restorer

__all__ = ["Recipe", "Restorer", "load", "restore"]
_ROOMS = {
    "Recipe": "flashray.recipe",
    "Restorer": "flashray.restorer",
    "load": "flashray.loading",
    "restore": "flashray.pipeline.restore",
}


def __getattr__(name: str) -> Any:
    """Import on first use: `import flashray` loads neither torch nor Ray."""
    if name not in _ROOMS:
        raise AttributeError(f"module 'flashray' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_ROOMS[name]), name)
