"""Images in and out: bytes to tensors and back, value ranges, sizes, contact sheets.

Inside flashray an image is a float32 tensor [3, H, W] of RGB in [-1, 1]. Colour profiles are not applied.
"""

from flashray.images.decode import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    MAX_SIDE,
    MIN_SIDE,
    Fit,
    contact_sheet,
    decode_image,
    encode_png,
    fit_image,
    from_uint8,
    image_size,
    is_image_name,
    to_pil,
    to_uint8,
)

__all__ = [
    "decode_image",
    "image_size",
    "encode_png",
    "fit_image",
    "Fit",
    "to_uint8",
    "from_uint8",
    "to_pil",
    "contact_sheet",
    "is_image_name",
    "IMAGE_SUFFIXES",
    "MIN_SIDE",
    "MAX_SIDE",
    "MAX_PIXELS",
]
