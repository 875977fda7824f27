"""From a restored image's pixels to the bytes of a file like the one that it was made from.

It needs torch, because the room of images does. The write stage imports it in its tasks only, so that other tasks start
without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import (
    NO_PLACE_FOR_NOTE,
    SourceImage,
    encode_like,
    encode_spread,
    from_uint16,
    open_image,
    reframed,
    sample_spread,
    unchanged,
)
from flashray.pipeline.run_config import IoConfig


@dataclass(frozen=True)
class EncodedOutput:
    """A file to write."""

    data: bytes
    unchanged: bool  # it is the archive's file itself, because no pixel would change by half a level
    lost: str | None  # this and the warnings as in the commits
    warnings: str | None
    samples: Sequence[bytes] = ()  # the files beside it (`outputs.sample_names`)
    spread: float | None = None  # mean standard deviation over the samples, in grey levels; None for one


def encode_output(image: Mapping[str, Any], io: IoConfig, note: dict[str, str] | None) -> EncodedOutput:
    """The file of a restored image, and those of its further samples, whose notes have their numbers.

    `image` is a value of `solve.IMAGE`, `note` that of provenance. ImageError where the format cannot hold the image,
    or with `strict` not all of it.
    """
    source = open_image(image["data"], io.max_megapixels)
    samples = [_image(pixels, image) for pixels in (image["pixels"], *(image["samples"] or ()))]
    notes = [note, *(note and note | {"sample": f"{n}"} for n in range(1, len(samples)))]
    encoded = [_encoded(x, source, image["data"], io, one) for x, one in zip(samples, notes, strict=True)]
    if len(samples) == 1:
        return encoded[0]
    spread_HW = sample_spread(samples)
    files = [*(one.data for one in encoded[1:]), encode_spread(spread_HW)]
    return replace(encoded[0], samples=files, spread=spread_HW.mean().item())


def refuse_losses(lost: Iterable[str]) -> None:
    """ImageError that names what a strict run would lose, if anything."""
    if missing := [what for what in lost if what != NO_PLACE_FOR_NOTE]:
        raise ImageError(f"its output cannot hold all of it, and the run is strict; lost: {'; '.join(missing)}")


def _image(pixels: bytes, image: Mapping[str, Any]) -> Tensor:
    """[3, H, W] in [-1, 1] of the 16-bit pixels of an `IMAGE`."""
    levels = np.frombuffer(pixels, np.uint16).reshape(image["height"], image["width"], 3)
    return from_uint16(torch.from_numpy(levels.astype(np.float32))).permute(2, 0, 1).contiguous()


def _encoded(
    x: Tensor, source: SourceImage, data: bytes, io: IoConfig, note: Mapping[str, str] | None
) -> EncodedOutput:
    """One sample as a file like its source, whose bytes are `data`."""
    warnings = " ".join(source.warnings) or None
    if io.format == "same" and unchanged(x, source, rounded=True):
        return EncodedOutput(data, True, None, warnings)
    if x.shape != source.pixels.shape:
        source = reframed(x, source, io.fit)
    encoded = encode_like(x, source, io.format, io.quality, note)
    if io.strict:
        refuse_losses(encoded.lost)
    return EncodedOutput(encoded.data, False, "; ".join(encoded.lost) or None, warnings)
