"""Bytes to RGB tensors, within the limits of a run on squares; `source.open_image` keeps what a file holds besides.

Inside flashray an image is a float32 tensor [3, H, W] of RGB in [-1, 1]. Colour profiles are not applied here.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flashray.errors import ImageError
from flashray.images.levels import from_uint8
from flashray.images.png import pixels_match_their_checksums

MIN_SIDE = 16  # smaller ones vanish in the autoencoder
MAX_SIDE = 16_384
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; 2 GiB as a float32 image

# The formats of these suffixes (JPEG includes MPO) and no other: Pillow's full list holds interpreters (PostScript).
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
_LIMITS = f"limits: {MIN_SIDE} to {MAX_SIDE:,} pixels a side, {MAX_PIXELS:,} in all"
_ORIENTATION = 274  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def image_size(data: bytes) -> tuple[int, int]:
    """(width, height) as the image is meant to be seen, from its header alone.

    ImageError when it is no image or outside the limits; a broken body is not noticed.
    """
    with _opened(data) as image:
        width, height = image.size
        return (height, width) if _orientation(image) >= 5 else (width, height)


def decode_image(data: bytes) -> Tensor:
    """The image as float32 [3, H, W] RGB in [-1, 1].

    Turned upright (EXIF); grey, palette and CMYK become RGB; transparency is laid on white; 16-bit grey is scaled, not
    clipped; of several frames the first is taken. ImageError, with the reason, for everything that is no sound image
    within the limits; the size is checked before any pixel is decoded.
    """
    with _opened(data) as image:
        orientation = _orientation(image)
        try:
            image.load()
        except Exception as error:  # the decoders of damaged files raise whatever they stumble on
            raise ImageError(f"the image is damaged or cut short: {error}") from error
        if image.format == "PNG" and not pixels_match_their_checksums(data):
            raise ImageError("the image is damaged or cut short: its pixels do not match their checksum")
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        return _to_tensor(upright)


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """The image with its header read and its size checked."""
    if not data:
        raise ImageError("the file is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limits below say more
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large; {_LIMITS}") from error
    except Exception as error:  # as in decode_image: damaged headers raise anything
        raise ImageError(
            f"this is not an image of a known format ({', '.join(_FORMATS)}), or its header is damaged"
        ) from error
    with image:
        width, height = image.size
        if min(width, height) < MIN_SIDE:
            raise ImageError(f"the image is too small, {width} x {height} pixels; {_LIMITS}")
        if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
            raise ImageError(f"the image is too large, {width} x {height} pixels; {_LIMITS}")
        yield image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) when there is none or it cannot be read."""
    if image.format == "TIFF":
        return 1  # Pillow turns these itself
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif") or b"")
        orientation = exif.get(_ORIENTATION, 1)
    except Exception:  # broken metadata is no reason to lose a photo
        return 1
    return orientation if orientation in _UPRIGHT else 1


def _to_tensor(image: Image.Image) -> Tensor:
    if image.mode == "F":
        raise ImageError("the image holds floating-point numbers of an unknown range; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ImageError("the image holds 32-bit numbers of an unknown range; save it with 8 or 16 bits")
        return torch.from_numpy((grey / 32767.5 - 1).astype(np.float32)).expand(3, -1, -1).contiguous()
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return from_uint8(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous())
