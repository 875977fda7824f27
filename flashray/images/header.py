"""The header of an image file: what it is and how large, before any memory is taken for its pixels."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, ImageFile, UnidentifiedImageError

from flashray.errors import ImageError
from flashray.images import ifd, metadata, png
from flashray.images.formats import readable_formats, refuse_known_strangers

MAX_MEGAPIXELS = 100.0
_RAW_PHOTOMETRIC = (32803, 34892)  # colour filter array, linear raw
_MOST_PREVIEWS = 64


@dataclass(frozen=True)
class ImageHeader:
    """What a file's header says."""

    format: str  # Pillow's name of the format: PNG, JPEG, WEBP, TIFF, BMP, PPM, AVIF, HEIF
    width: int  # in pixels, as the image is meant to be seen (upright)
    height: int


def read_header(data: bytes, max_megapixels: float = MAX_MEGAPIXELS) -> ImageHeader:
    """Format and upright size of an image file, without decoding a pixel.

    ImageError when it is no image of a known format, an animation, a document of several pages, a camera's raw file, or
    larger than `max_megapixels` (millions of pixels). A broken body is not noticed.
    """
    with opened(data, max_megapixels) as (image, format):
        width, height = image.size
        if format == "TIFF":  # Pillow gives the upright size where the tag says so, but not where only XMP does
            turned = quarter_turn_of_tiff(image) and metadata.ORIENTATION not in ifd.read_first(data).entries
        else:
            turned = metadata.orientation(exif_of(data, image, format)) >= 5
        if turned:
            width, height = height, width
        return ImageHeader(format, width, height)


@contextmanager
def opened(data: bytes, max_megapixels: float) -> Iterator[tuple[ImageFile.ImageFile, str]]:
    """The image with its header read and checked, and its format; MPO, several pictures in a JPEG, counts as JPEG."""
    if not data:
        raise ImageError("the file is empty")
    refuse_known_strangers(data)
    if (size := _webp_size(data)) is not None:
        _check_size(*size, max_megapixels)  # Pillow takes memory for the pixels of a WebP when it opens it
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below says more
            image = Image.open(io.BytesIO(data), formats=readable_formats())
    except Image.DecompressionBombError as error:
        raise ImageError(f"the image is too large; the limit is {max_megapixels:g} megapixels") from error
    except Exception as error:  # damaged headers raise whatever the parsers stumble on
        raise ImageError(_why_unknown(data, error)) from error
    with image:
        _check_size(*image.size, max_megapixels)
        format = "JPEG" if image.format == "MPO" else str(image.format)
        if format == "TIFF":
            _check_tiff(data)
        elif image.format != "MPO" and getattr(image, "is_animated", False):
            raise ImageError("the file is an animation; flashray restores single images")
        yield image, format


def exif_of(data: bytes, image: Image.Image, format: str) -> bytes | None:
    """EXIF data without prefix, as it stands in the file; None when there is none or it is broken."""
    if format == "TIFF":
        return metadata.exif_of_tiff(ifd.read_first(data))
    if format == "PNG":  # its chunk may stand behind the pixels, which are not read yet
        return metadata.bare_exif(next((body for kind, body in png.chunks(data) if kind == b"eXIf"), None))
    exif = image.info.get("exif")
    return metadata.bare_exif(exif if isinstance(exif, bytes) else None)


def quarter_turn_of_tiff(image: Image.Image) -> bool:
    """Whether Pillow will exchange width and height of a TIFF, which it turns upright itself, when it loads it."""
    try:
        return image.getexif().get(metadata.ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # broken metadata is no reason to lose a photo
        return False


def _check_size(width: int, height: int, max_megapixels: float) -> None:
    if width * height > max_megapixels * 1e6:
        raise ImageError(
            f"the image is too large, {width} x {height} pixels or {width * height / 1e6:.1f} megapixels; "
            f"the limit is {max_megapixels:g} megapixels"
        )


def _check_tiff(data: bytes) -> None:
    """ImageError for raw files and several pages."""
    try:
        main = ifd.read_first(data)
    except ValueError as error:
        raise ImageError(f"the image is damaged: {error}") from error
    photometric, reduced = main.number(262, 1), main.number(254, 0) & 1
    if 50706 in main.entries or photometric in _RAW_PHOTOMETRIC or (reduced and 330 in main.entries):
        raise ImageError("this is a camera's raw file; develop it to TIFF first")
    big = data[2:4] in (b"+\0", b"\0+")
    directory, seen = main, set[int]()
    while directory.next and directory.next not in seen and len(seen) < _MOST_PREVIEWS:
        seen.add(directory.next)
        try:
            directory = ifd.read_at(data, directory.next, directory.order, big)
        except ValueError:
            return  # what the pointer leads to is no page
        if not (directory.number(254, 0) & 5 or directory.number(255, 0) == 2):
            raise ImageError("the file is a TIFF of several pages; split it into one file a page")


def _why_unknown(data: bytes, error: Exception) -> str:
    if data[:2] in (b"II", b"MM"):
        try:
            main = ifd.read_first(data)
            _check_tiff(data)
        except ValueError:
            return "the image is damaged or cut short: a TIFF without a directory"
        bits, kinds = main.numbers(258), main.numbers(339)
        return (
            f"this is a TIFF of a kind that is not read ({main.number(277, 1)} samples of {max(bits, default=1)} bits"
            f"{', floating point' if 3 in kinds else ''}{', white is zero' if main.number(262, 1) == 0 else ''}); "
            "save it as RGB or grey with 8 or 16 bits, where zero is black"
        )
    formats = ", ".join(readable_formats())
    detail = "" if isinstance(error, UnidentifiedImageError) else f": {error}"
    return f"this is not an image of a known format ({formats}), or its header is damaged{detail}"


def _webp_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a WebP file; None when it is not one."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    return int.from_bytes(data[26:28], "little") & 0x3FFF, int.from_bytes(data[28:30], "little") & 0x3FFF
