"""From a file's bytes to a photo that can be measured, in the actors."""

from __future__ import annotations

import json
from typing import Any

from torch import Tensor

from flashray.errors import ImageError
from flashray.images import MAX_MEGAPIXELS, open_image
from flashray.measurement import Photo
from flashray.pipeline.load import mask_uri_of
from flashray.restorer import Restorer


def decode_photo(
    restorer: Restorer,
    key: str,
    data: bytes,
    given: str | None,
    noise_std: float | None,
    mask_data: bytes | None,
    *,
    max_megapixels: float = MAX_MEGAPIXELS,
) -> tuple[Photo, tuple[int, int]]:
    """(the photo, (width, height) of the file, upright).

    Args:
        given: JSON of the operator's parameters, or of its mask's URI, from the manifest or the plan.
        max_megapixels: a larger image is refused.

    Raises:
        ImageError: with the reason, where it is not a valid image, does not fit, or its parameters are not known.
    """
    image = open_image(data, max_megapixels).pixels
    height, width = image.shape[1:]
    values = json.loads(given or "{}")
    mask = None
    if "mask" in values:
        if mask_data is None:
            raise ImageError("the manifest does not give its mask")
        mask = _decode_mask(restorer, mask_data, values["mask"], image, max_megapixels)
        values = {}
    return restorer.measurer.photo(key, restorer.frame.take(image), values, noise_std, mask), (width, height)


def decode_reference(restorer: Restorer, data: bytes | None, max_megapixels: float = MAX_MEGAPIXELS) -> Tensor | None:
    """The clean image as a square of the prior's size; None where it cannot be read."""
    if data is None:
        return None
    try:
        return restorer.reference_frame.take(open_image(data, max_megapixels).pixels)
    except ImageError:
        return None


def kept_parameters(photo: Photo, given: str | None) -> str:
    """One image's parameters as JSON, from which `decode_photo` makes the same again; of a mask, its URI."""
    values: dict[str, Any]
    if "mask" in photo.parameters:
        values = {"mask": mask_uri_of(given)}
    else:
        values = {name: value.item() for name, value in photo.parameters.items()}
    return json.dumps(values)


def _decode_mask(restorer: Restorer, data: bytes, uri: str, image_CHW: Tensor, max_megapixels: float) -> Tensor:
    try:
        mask = open_image(data, max_megapixels).pixels
    except ImageError as error:
        raise ImageError(f"its mask {uri} cannot be read: {error}") from error
    if mask.shape != image_CHW.shape:
        (height, width), (rows, columns) = image_CHW.shape[1:], mask.shape[1:]
        raise ImageError(f"its mask {uri} has {columns} x {rows} pixels, and the image {width} x {height}")
    return restorer.frame.take_mask(mask)
