"""The name and the format of each restored image."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from flashray.errors import ConfigError

# the format that Pillow writes for a suffix
_FORMAT_OF = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".bmp": "BMP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
_SUFFIX_OF = {"png": ".png", "jpeg": ".jpg", "webp": ".webp", "tiff": ".tiff"}
_OPTIONS: dict[str, dict[str, Any]] = {
    "PNG": {"compress_level": 6},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"quality": 95, "method": 4},
    "TIFF": {"compression": "tiff_deflate"},
}


def output_name(key: str, format: str = "same") -> str:
    """The name of a restored image below the output.

    It is the image's key. Where the format changes, its suffix is appended (`a.jpg` as PNG is `a.jpg.png`), so that
    `a.jpg` and `a.png` stay two outputs.
    """
    if format == "same" or _format(key) == _FORMAT_OF[_SUFFIX_OF[format]]:
        return key
    return key + _SUFFIX_OF[format]


def refuse_clashes(keys: Iterable[str], format: str) -> None:
    """Raise ConfigError where two keys map to one output."""
    if format == "same":
        return
    keys = list(keys)
    names = Counter(output_name(key, format) for key in keys)
    twice = [key for key in keys if names[output_name(key, format)] > 1]
    if twice:
        raise ConfigError(
            f"{twice[0]!r} and {twice[1]!r} would be written to one file, {output_name(twice[0], format)!r}; "
            "rename one of them, or leave out --format"
        )


def encode(pixels_HWC: npt.NDArray[np.uint8], name: str) -> bytes:
    """8-bit RGB pixels in the format of the name's suffix: the same pixels give the same bytes."""
    buffer = io.BytesIO()
    format = _format(name)
    Image.fromarray(pixels_HWC).save(buffer, format=format, **_OPTIONS.get(format, {}))
    return buffer.getvalue()


def _format(name: str) -> str:
    return _FORMAT_OF.get("." + name.lower().rpartition(".")[2], "PNG")
