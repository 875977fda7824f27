"""The file formats: which ones are read, how they are recognised and named, and what each of them can hold."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from typing import Literal

from PIL import Image, features

from flashray.errors import ImageError

OutputFormat = Literal["same", "png", "jpeg", "webp", "tiff"]


@dataclass(frozen=True)
class Holds:
    """What a file format can hold."""

    depths: tuple[int, ...] = (8,)  # bits a sample; 32 stands for floating-point numbers
    kinds: tuple[str, ...] = ("grey", "rgb")  # of colour samples, as in `SourceImage.kind`
    alpha: bool = True  # whether it has a place for it, and for the next three
    icc: bool = True
    exif: bool = True
    xmp: bool = True
    max_side: int = 2**31 - 1  # the most pixels a side


FORMATS: dict[str, Holds] = {
    "PNG": Holds(depths=(8, 16)),
    "JPEG": Holds(kinds=("grey", "rgb", "cmyk"), alpha=False, max_side=65_500),
    "WEBP": Holds(kinds=("rgb",), max_side=16_383),
    "TIFF": Holds(depths=(8, 16, 32), kinds=("grey", "rgb", "cmyk")),
    "BMP": Holds(icc=False, exif=False, xmp=False, alpha=False, max_side=2**31 - 1),
    "PPM": Holds(depths=(8, 16), icc=False, exif=False, xmp=False, alpha=False),
    "AVIF": Holds(kinds=("rgb",), max_side=65_535),
    "HEIF": Holds(kinds=("rgb",), max_side=65_535),
}

# format to write → its name, and the suffixes of its files; a new file gets the first
WRITTEN: dict[str, tuple[str, tuple[str, ...]]] = {
    "png": ("PNG", (".png",)),
    "jpeg": ("JPEG", (".jpg", ".jpeg", ".jpe", ".jfif")),
    "webp": ("WEBP", (".webp",)),
    "tiff": ("TIFF", (".tif", ".tiff")),
}
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
# These need a decoder that Pillow may lack. An archive lists them all the same, so that each has a row that says so.
PLUGIN_SUFFIXES = (".avif", ".heic", ".heif")

_ALWAYS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM")
_AVIF_BRANDS = (b"avif", b"avis")
_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that can be read here: AVIF and HEIF only where Pillow has a decoder for them.

    Pillow's full list is never used: it holds interpreters (PostScript).
    """
    _register_heif()
    plugins = []
    if features.check("avif"):
        plugins.append("AVIF")
    if "HEIF" in Image.OPEN:
        plugins.append("HEIF")
    return (*_ALWAYS, *plugins)


@cache
def _register_heif() -> None:
    """Gives Pillow the decoder of pillow-heif where that package is installed."""
    with suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()


def refuse_known_strangers(data: bytes) -> None:
    """ImageError, with the remedy, for formats that people have and flashray does not read."""
    if data[:6] in (b"GIF87a", b"GIF89a"):
        raise ImageError("this is a GIF, which holds 256 colours and animations; save it as PNG")
    brands = _brands(data)
    if any(brand in _AVIF_BRANDS for brand in brands):
        if "AVIF" not in readable_formats():
            raise ImageError("this is an AVIF image and Pillow has no decoder for it here; install pillow-avif-plugin")
    elif any(brand in _HEIF_BRANDS for brand in brands) and "HEIF" not in readable_formats():
        raise ImageError("this is a HEIC image and Pillow has no decoder for it here; install pillow-heif")
    if data[8:11] == b"CR\x02" and data[:2] == b"II":
        raise ImageError("this is a camera's raw file (CR2); develop it to TIFF first")


def _brands(data: bytes) -> list[bytes]:
    """Of an ISO media file (AVIF, HEIC), the major brand first; empty for other files."""
    if data[4:8] != b"ftyp":
        return []
    box = data[8 : min(int.from_bytes(data[:4]), 256)]
    return [box[:4], *(box[i : i + 4] for i in range(8, len(box), 4))]


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image that is always read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_photo_name(name: str) -> bool:
    """Whether a file name has the suffix of an image, also of one that is read only where Pillow has a decoder."""
    return name.lower().endswith(IMAGE_SUFFIXES + PLUGIN_SUFFIXES)


def output_name(key: str, format: OutputFormat) -> str:
    """The relative name of the restored image of a key.

    It is the key itself for `same`, and where the key already has a suffix of the format. Otherwise the format's suffix
    is appended, never exchanged: `a.jpg` as PNG is `a.jpg.png`, so that it does not collide with the output of `a.png`;
    with that of `a.jpg.png` it does, which whoever maps all keys has to check. ValueError for an unknown format.
    """
    if format == "same":
        return key
    if format not in WRITTEN:
        raise ValueError(f"format: same, {', '.join(WRITTEN)}; not {format!r}")
    _, suffixes = WRITTEN[format]
    return key if key.lower().endswith(suffixes) else key + suffixes[0]
