"""File names of images: which ones an archive lists, and what a restored one is called."""

from __future__ import annotations

from flashray.images.formats import OutputFormat

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".ppm", ".pgm")
# These need a decoder that Pillow may lack. An archive lists them all the same, so that each has a row that says so.
PLUGIN_SUFFIXES = (".avif", ".heic", ".heif")

_SUFFIXES_OF: dict[str, tuple[str, ...]] = {
    "png": (".png",),
    "jpeg": (".jpg", ".jpeg"),
    "webp": (".webp",),
    "tiff": (".tif", ".tiff"),
}


def is_image_name(name: str) -> bool:
    """Whether a file name has the suffix of an image that is always read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_photo_name(name: str) -> bool:
    """Whether a file name has the suffix of an image, also of one that is read only where Pillow has a decoder."""
    return name.lower().endswith(IMAGE_SUFFIXES + PLUGIN_SUFFIXES)


def output_name(key: str, format: OutputFormat) -> str:
    """The relative name of the restored image of a key.

    It is the key itself for `same`, and where the key already has a suffix of the format. Otherwise the format's suffix
    is appended, never exchanged: `a.jpg` as PNG is `a.jpg.png`, so that it does not collide with the output of `a.png`.
    An archive that holds both `a.jpg` and `a.jpg.png` still collides: whoever maps all its keys has to check that.
    ValueError for an unknown format.
    """
    if format == "same":
        return key
    if format not in _SUFFIXES_OF:
        raise ValueError(f"format: same, {', '.join(_SUFFIXES_OF)}; not {format!r}")
    suffixes = _SUFFIXES_OF[format]
    return key if key.lower().endswith(suffixes) else key + suffixes[0]
