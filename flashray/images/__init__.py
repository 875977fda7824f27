"""Images in and out: files to tensors and back, colour profiles and metadata, sizes, contact sheets.

Inside flashray an image is a float32 tensor [3, H, W] of RGB in [-1, 1]. `open_image` and `encode_like` read a photo of
any kind and write the same kind of photo again; `decode_image`, `fit_image` and `encode_png` serve experiments on
squares, without colour profiles.
"""

from flashray.images.decode import MAX_PIXELS, MAX_SIDE, MIN_SIDE, decode_image, image_size
from flashray.images.encode import encode_png
from flashray.images.formats import OutputFormat
from flashray.images.given import ImageLike, as_image, as_list, name_of
from flashray.images.header import MAX_MEGAPIXELS, ImageHeader, read_header
from flashray.images.levels import from_uint8, from_uint16, to_pil, to_uint8, to_uint16
from flashray.images.names import IMAGE_SUFFIXES, is_image_name, is_photo_name, output_name
from flashray.images.reframed import reframed
from flashray.images.sheet import contact_sheet
from flashray.images.sizes import Fit, fit_image
from flashray.images.source import SourceImage, open_image, unchanged
from flashray.images.spread import decode_spread, encode_spread, sample_spread
from flashray.images.write import NO_PLACE_FOR_NOTE, Encoded, check_side, encode_like, losses

__all__ = [
    "ImageLike",
    "as_image",
    "as_list",
    "name_of",
    "SourceImage",
    "open_image",
    "encode_like",
    "Encoded",
    "check_side",
    "losses",
    "unchanged",
    "reframed",
    "NO_PLACE_FOR_NOTE",
    "output_name",
    "OutputFormat",
    "ImageHeader",
    "read_header",
    "MAX_MEGAPIXELS",
    "decode_image",
    "encode_png",
    "image_size",
    "MIN_SIDE",
    "MAX_SIDE",
    "MAX_PIXELS",
    "fit_image",
    "Fit",
    "to_uint8",
    "from_uint8",
    "to_uint16",
    "from_uint16",
    "to_pil",
    "contact_sheet",
    "sample_spread",
    "encode_spread",
    "decode_spread",
    "is_image_name",
    "is_photo_name",
    "IMAGE_SUFFIXES",
]
