"""What a Python caller may give as an image: a path, a PIL picture, an array or a tensor."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from flashray.errors import ImageError
from flashray.images import metadata
from flashray.images.colour import colour_space
from flashray.images.levels import from_uint8
from flashray.images.samples import sixteen_bits
from flashray.images.source import open_image, to_pixels
from flashray.shown import storable

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


def as_image(given: ImageLike, reach: float = 1.0) -> Tensor:
    """A path, picture, array or tensor as float32 [3, H, W] in [-1, 1]; of a tensor in ±`reach`, as noise leaves it.

    ValueError for a wrong shape, range or type; ImageError for a file that is no valid image; OSError for one that
    cannot be read.
    """
    if isinstance(given, str | Path):
        try:
            return open_image(Path(os.path.expanduser(given)).read_bytes()).pixels
        except ValueError as error:  # such as a NUL in the path
            raise ImageError(f"{error}: {str(given)!r}") from error
    shape = given.size[::-1] if isinstance(given, Image.Image) else getattr(given, "shape", ())
    if 0 in shape:
        raise ValueError(f"an image of shape {list(shape)} has no pixels")
    if isinstance(given, Image.Image):
        return _of_picture(given)
    if isinstance(given, np.ndarray):
        if given.dtype != np.uint8 or not (given.ndim == 2 or (given.ndim == 3 and given.shape[2] == 3)):
            raise ValueError(
                f"an array is uint8 [H, W, 3] or [H, W], not {given.dtype} {list(given.shape)}; "
                "give floating-point images as a tensor [3, H, W] in [-1, 1]"
            )
        grey = np.repeat(given[..., None], 3, axis=2) if given.ndim == 2 else given
        return from_uint8(torch.from_numpy(grey.copy()).permute(2, 0, 1).contiguous())
    if isinstance(given, Tensor):
        if given.ndim != 3 or given.shape[0] != 3 or not given.dtype.is_floating_point:
            raise ValueError(f"a tensor is floating point [3, H, W] in [-1, 1], not {given.dtype} {list(given.shape)}")
        if not -1.001 * reach <= given.min() <= given.max() <= 1.001 * reach:  # nor of NaN
            raise ValueError(f"a tensor's values are in [-1, 1], and these are from {given.min():g} to {given.max():g}")
        return given.detach().float().cpu()
    raise ValueError(f"an image is a path, a PIL picture, an array or a tensor, not a {type(given).__name__}")


def _of_picture(picture: Image.Image) -> Tensor:
    """A PIL picture, upright and with its colour profile applied, as its file would be."""
    if picture.mode in ("I", "F"):
        raise ValueError(
            f"a picture of mode {picture.mode} does not say what its values stand for; give its path, or a tensor "
            "[3, H, W] in [-1, 1]"
        )
    picture.load()  # only then all of its metadata are there
    tags = getattr(picture, "tag_v2", {})  # of a TIFF
    icc, exif = picture.info.get("icc_profile"), picture.info.get("exif")
    if isinstance(exif, bytes):
        turned = metadata.orientation(metadata.bare_exif(exif)) > 1
    else:  # Pillow also looks into XMP, which flashray does not
        turned = not picture.info.keys() & {"xmp", "XML:com.adobe.xmp"} and picture.getexif().get(274, 1) != 1
    picture = ImageOps.exif_transpose(picture) if turned else picture
    if picture.mode.startswith("I;16"):
        values = sixteen_bits(picture, 12 in tags.get(258, ()), tags.get(262) == 0)
        return to_pixels(values[..., None], colour_space("grey", 16, icc)[0])
    picture = picture.convert("LA") if picture.mode == "La" else picture  # Pillow makes nothing else of it
    mode = {"CMYK": "CMYK", "L": "L", "LA": "L", "1": "L"}.get(picture.mode, "RGB")
    values = np.atleast_3d(np.array(picture.convert(mode)))
    return to_pixels(values, colour_space({"CMYK": "cmyk", "L": "grey", "RGB": "rgb"}[mode], 8, icc)[0])


def as_mask(given: ImageLike) -> Tensor:
    """A mask as `as_image` takes it, or as an array of booleans: [3, H, W] in [-1, 1], 1 where a pixel is known."""
    if isinstance(given, np.ndarray) and given.dtype == bool:
        given = given.astype(np.uint8) * 255
    return as_image(given)


def as_list(images: ImageLike | Sequence[ImageLike]) -> list[ImageLike]:
    """The images of a call that takes one or several; a tensor [B, 3, H, W] is B images."""
    if isinstance(images, Tensor) and images.ndim == 4:
        return list(images)
    if isinstance(images, str | Path | Image.Image | np.ndarray | Tensor):
        return [images]
    return list(images) if isinstance(images, Iterable) else [images]


def name_of(image: ImageLike, position: int) -> str:
    """The name of an image that was given without one: its path, else its position."""
    return storable(str(image)) if isinstance(image, str | Path) else f"{position}"
