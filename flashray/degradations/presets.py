"""Reference settings of the families by name, each with its source: `settings: {preset: NAME}` in any recipe.

The noise of all of Flash-Diffusion's experiments has a standard deviation of 0.05 on the [0, 1] scale, as here by
default.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flashray.errors import ConfigError

_PAPER = {"paper": True, "fill": False}

# Those without another source are the configurations of the public code of Flash-Diffusion (Fabian et al., ICML 2024)
PRESETS: dict[str, dict[str, Mapping[str, Any]]] = {
    "gaussian_blur": {
        "varying": {"std": (0.3, 3.0), "kernel_size": 61},  # its training, and its tests of varying blur
        "fixed": {"std": (3.0, 3.0), "kernel_size": 61},  # its tests of fixed blur
    },
    "random_inpainting": {
        "paper_train": {**_PAPER, "missing": (0.0, 0.8)},  # one nested mask
        "paper_test": {**_PAPER, "missing": (0.7, 0.8)},  # one nested mask
        "test": {"missing": (0.7, 0.8)},  # the range of its tests; here each image has its own mask
    },
    "kernel_wizard": {"paper": {"strength": (1.2, 1.2), "paper": True}},  # nonlinear blur
    "box_inpainting": {
        "dps_256": {"side": (128, 128)},  # DPS (Chung et al., ICLR 2023): a box of 128 in images of 256
        "dps_128": {"side": (64, 64)},  # the same share, a quarter of the area, in images of 128
    },
    "super_resolution": {
        "x2": {"scale": 2},  # area means, half the size
        "x4": {"scale": 4},  # DDRM (Kawar et al., NeurIPS 2022): area means, a quarter of the size
    },
}


def with_preset(family: str, settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The settings, with those of their `preset` added if they name one; settings that are given replace the preset's.

    ConfigError for an unknown preset, with the family's known ones.
    """
    settings = dict(settings or {})
    name = settings.pop("preset", None)
    if name is None:
        return settings
    known = PRESETS.get(family, {})
    if not isinstance(name, str) or name not in known:
        listed = ", ".join(known) or "none"
        raise ConfigError(f"degradation {family}: preset {name!r} is not known; known: {listed}")
    return {**known[name], **settings}
