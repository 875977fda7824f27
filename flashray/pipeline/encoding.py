"""From a restored image's pixels to the bytes of a file like the one that it was made from.

It needs torch, because the room of images does. The write stage imports it in its tasks only, so that other tasks start
without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flashray.errors import ImageError
from flashray.images import NO_PLACE_FOR_NOTE, encode_like, from_uint16, open_image, reframed, unchanged
from flashray.pipeline.run_config import IoConfig


@dataclass(frozen=True)
class EncodedOutput:
    """A file to write.

    Attributes:
        unchanged: whether it is the archive's file itself, because no pixel would change by half a level.
        lost, warnings: as in the commits.
    """

    data: bytes
    unchanged: bool
    lost: str | None
    warnings: str | None


def encode_output(image: Mapping[str, Any], io: IoConfig, note: Mapping[str, str] | None) -> EncodedOutput:
    """The file of a restored image.

    Args:
        image: a value of `solve.IMAGE`.
        note: of provenance.

    Raises:
        ImageError: where the format cannot hold the image, or with `strict` not all of it.
    """
    levels = np.frombuffer(image["pixels"], np.uint16).reshape(image["height"], image["width"], 3)
    x = from_uint16(torch.from_numpy(levels.astype(np.float32))).permute(2, 0, 1).contiguous()
    source = open_image(image["data"], io.max_megapixels)
    warnings = " ".join(source.warnings) or None
    if io.format == "same" and unchanged(x, source):
        return EncodedOutput(image["data"], True, None, warnings)
    if x.shape != source.pixels.shape:
        source = reframed(x, source, io.fit)
    encoded = encode_like(x, source, io.format, io.quality, note)
    missing = [what for what in encoded.lost if what != NO_PLACE_FOR_NOTE]
    if io.strict and missing:
        raise ImageError(f"its output cannot hold all of it, and the run is strict; lost: {'; '.join(missing)}")
    return EncodedOutput(encoded.data, False, "; ".join(encoded.lost) or None, warnings)
