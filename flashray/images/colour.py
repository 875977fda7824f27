"""From the colour samples of a file to the sRGB that the networks see, and back.

Profiles are applied relative to their white (relative colorimetric, with black point compensation). A perceptual
rendering compresses all colours by a rule of its own that differs between the two directions, so that an untouched
photo would come back changed; the relative one moves only what sRGB cannot show.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from PIL import Image, ImageCms

from flashray.images.icc import Floats, curves_and_matrix

_MODES = {"grey": "L", "rgb": "RGB", "cmyk": "CMYK"}
_SIGNATURES = {"grey": b"GRAY", "rgb": b"RGB ", "cmyk": b"CMYK"}


class ColourSpace(Protocol):
    """Samples [H, W, C] in [0, 1], as the file has them, against sRGB [H, W, 3] in [0, 1]; float32 both."""

    @property
    def exact(self) -> bool:
        """Whether `from_srgb` undoes `to_srgb`."""

    def to_srgb(self, samples: Floats) -> Floats: ...

    def from_srgb(self, x: Floats) -> Floats: ...


@lru_cache(maxsize=8)  # the photos of an archive share few profiles, and one of tables takes a tenth of a second
def colour_space(kind: str, depth: int, icc: bytes | None) -> tuple[ColourSpace, str | None]:
    """The colour space of samples of a kind (grey, rgb, cmyk) and depth in bits, and a warning or None.

    A profile that is broken, or made for another kind of samples, is not used: the samples are taken as sRGB.
    """
    plain: ColourSpace = _Plain(kind)
    if kind == "cmyk":
        plain = _EightBits(lambda picture: picture.convert("RGB"), lambda picture: picture.convert("CMYK"))
    if icc is None:
        return plain, "16 bits of CMYK were converted with 8" if kind == "cmyk" and depth > 8 else None
    if icc[16:20] != _SIGNATURES[kind]:
        return plain, f"the colour profile is broken or not made for {kind} images: taken as sRGB"
    if depth > 8 and (parsed := curves_and_matrix(icc)) is not None:
        return (plain if kind == "rgb" and _is_srgb(parsed) else parsed), None
    try:
        space = _managed(kind, icc)
        if kind == "rgb" and _is_srgb(space):
            return plain, None
    except Exception as error:  # littlecms and Pillow's binding raise various types
        return plain, f"the colour profile is broken ({str(error)[:80]}): taken as sRGB"
    if depth > 8:
        return space, "the colour profile is built of tables: colours were converted with 8 bits"
    return space, None


def _is_srgb(space: ColourSpace) -> bool:
    """Whether a profile moves no colour by more than one 8-bit level: then it is sRGB, as most profiles are."""
    places = np.linspace(0, 1, 16, dtype=np.float32)  # whole levels: multiples of 17
    probe = np.stack(np.meshgrid(places, places, places, indexing="ij"), axis=-1).reshape(1, -1, 3)
    return bool(np.abs(space.to_srgb(probe) - probe).max() <= 1.01 / 255)


class _Plain:
    """sRGB, and grey with sRGB's curve."""

    exact = True

    def __init__(self, kind: str) -> None:
        self.channels = 1 if kind == "grey" else 3

    def to_srgb(self, samples: Floats) -> Floats:
        return samples if self.channels == 3 else samples.repeat(3, axis=-1)

    def from_srgb(self, x: Floats) -> Floats:
        return x if self.channels == 3 else x.mean(axis=-1, keepdims=True)


@dataclass(frozen=True)
class _EightBits:
    """A conversion by Pillow, which knows 8 bits only."""

    there: Callable[[Image.Image], Image.Image]
    back: Callable[[Image.Image], Image.Image]
    exact: bool = False

    def to_srgb(self, samples: Floats) -> Floats:
        return _floats(self.there(_picture(samples)))

    def from_srgb(self, x: Floats) -> Floats:
        return _floats(self.back(_picture(x)))


def _managed(kind: str, icc: bytes) -> _EightBits:
    """A profile, by way of littlecms."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, ImageCms.Flags.BLACKPOINTCOMPENSATION
    mode = _MODES[kind]
    there = ImageCms.buildTransform(profile, srgb, mode, "RGB", intent, flags)
    back = ImageCms.buildTransform(srgb, profile, "RGB", mode, intent, flags)
    return _EightBits(there.apply, back.apply)


def _picture(values: Floats) -> Image.Image:
    bytes_HWC = np.rint(values * 255).astype(np.uint8)
    height, width, channels = bytes_HWC.shape
    return Image.frombytes({1: "L", 3: "RGB", 4: "CMYK"}[channels], (width, height), bytes_HWC.tobytes())


def _floats(picture: Image.Image) -> Floats:
    values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    return values if values.ndim == 3 else values[..., None]
