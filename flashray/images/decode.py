"""Images in and out: bytes to tensors and back, value ranges, sizes, contact sheets.

Inside flashray an image is a float32 tensor [3, H, W] of RGB in [-1, 1]. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from flashray.errors import ImageError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
MIN_SIDE = 16  # smaller ones vanish in the autoencoder
MAX_SIDE = 16_384
MAX_PIXELS = 178_956_970  # where Pillow itself refuses; 2 GiB as a float32 image
Fit = Literal["resize", "crop", "error"]

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


def is_image_name(name: str) -> bool:
    """Whether a file name has an image's suffix."""
    return name.lower().endswith(IMAGE_SUFFIXES)


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
        if image.format == "PNG" and not _png_matches_its_checksums(data):
            raise ImageError("the image is damaged or cut short: its pixels do not match their checksum")
        upright = image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image
        return _to_tensor(upright)


def fit_image(x_CHW: Tensor, size: int, fit: Fit) -> Tensor:
    """The image as a square [C, size, size] in [-1, 1].

    resize: its largest centred square, scaled (antialiased bicubic, clamped); crop: its centre, unscaled; error: as it
    is. ImageError when it is too small to crop, or not of that size already.
    """
    height, width = x_CHW.shape[-2:]
    if (height, width) == (size, size):
        return x_CHW
    if fit == "error":
        raise ImageError(f"the image has {width} x {height} pixels, not {size} x {size}; fit: resize or crop takes it")
    if fit == "crop":
        if min(height, width) < size:
            raise ImageError(
                f"the image has {width} x {height} pixels, too few to crop {size} x {size}; use fit: resize"
            )
        return _centre(x_CHW, size)
    square = _centre(x_CHW, min(height, width))
    return interpolate(square[None], size=(size, size), mode="bicubic", antialias=True, align_corners=False)[0].clamp(
        -1, 1
    )


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded; values outside are clamped."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """0 … 255 to float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def encode_png(x_CHW: Tensor) -> bytes:
    """The image as a PNG of 8-bit RGB: the same image gives the same bytes (no metadata, no dates, fixed compression).

    x is [3, H, W] in [-1, 1], clamped. ImageError when it holds NaN or infinities, which no PNG can.
    """
    if not torch.isfinite(x_CHW).all():
        raise ImageError("the image holds values that are not finite")
    buffer = io.BytesIO()
    to_pil(x_CHW).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()


def to_pil(x_CHW: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] to an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(x_CHW).permute(1, 2, 0).contiguous().cpu().numpy())


def contact_sheet(
    rows: Sequence[Sequence[Tensor | None]], column_titles: Sequence[str], row_titles: Sequence[str] | None = None
) -> Image.Image:
    """A table of images on white: one row an image, one column a method; None leaves its place empty.

    Images are [3, H, W] in [-1, 1] of any sizes; places are as large as the largest. ValueError when there is no image
    or the titles, which may have several lines, do not match the table.
    """
    images = [image for row in rows for image in row if image is not None]
    if not images:
        raise ValueError("a contact sheet needs at least one image")
    if any(len(row) != len(column_titles) for row in rows) or (row_titles is not None and len(row_titles) != len(rows)):
        raise ValueError("a contact sheet has one title a column and one a row")
    cell_width, cell_height = max(x.shape[2] for x in images), max(x.shape[1] for x in images)
    font = _font(max(11, min(cell_width // 10, 28)))
    columns, names = [_printable(title) for title in column_titles], [_printable(title) for title in row_titles or ()]
    gap = max(4, cell_width // 32)
    header = gap + max(_text_size(title, font)[1] for title in columns)
    left = gap + max((_text_size(name, font)[0] + gap for name in names), default=0)
    cell_width = max(cell_width, *(_text_size(title, font)[0] for title in columns))
    width, height = left + len(columns) * (cell_width + gap), header + gap + len(rows) * (cell_height + gap)
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.text((left + column * (cell_width + gap), gap), title, fill="black", font=font)
    for index, row in enumerate(rows):
        top = header + gap + index * (cell_height + gap)
        if names:
            draw.text((gap, top), names[index], fill="black", font=font)
        for column, image in enumerate(row):
            if image is not None:
                sheet.paste(to_pil(image), (left + column * (cell_width + gap), top))
    return sheet


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


def _png_matches_its_checksums(data: bytes) -> bool:
    """Of the pixels alone; Pillow looks at all the others, and takes damaged pixels as they come."""
    place = 8  # behind the signature
    while place < len(data):
        end = place + 8 + int.from_bytes(data[place : place + 4])
        kind = data[place + 4 : place + 8]
        if kind == b"IDAT" and zlib.crc32(data[place + 4 : end]) != int.from_bytes(data[end : end + 4]):
            return False
        place = end + 4
    return True


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


def _centre(x_CHW: Tensor, size: int) -> Tensor:
    height, width = x_CHW.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    return x_CHW[..., top : top + size, left : left + size].contiguous()


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes inside matplotlib and knows letters such as ẑ and σ."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def _printable(text: str) -> str:
    """Without the characters that no font can lay out: file names may hold anything."""
    return "".join(char if char.isprintable() or char == "\n" else "?" for char in text)


def _text_size(text: str, font: ImageFont.FreeTypeFont) -> tuple[int, int]:
    box = ImageDraw.Draw(Image.new("L", (1, 1))).textbbox((0, 0), text, font=font)
    return math.ceil(box[2]), math.ceil(box[3])
