"""Images in and out: files to tensors and back, colour profiles and metadata, sizes, contact sheets.

Inside flashray an image is a float32 tensor [3, H, W] of RGB in [-1, 1]. `open_image` and `encode_like` read a photo of
any kind and write the same kind of photo again; `fit_image` brings one to a square, `encode_png` writes a plain PNG.
"""

from flashray.images.formats import (
    IMAGE_SUFFIXES,
    PLUGIN_SUFFIXES,
    OutputFormat,
    is_image_name,
    is_photo_name,
    output_name,
)
from flashray.images.given import ImageLike, as_image, as_list, as_mask, name_of
from flashray.images.header import MAX_MEGAPIXELS, read_header
from flashray.images.levels import from_uint8, from_uint16, saved, to_pil, to_uint8, to_uint16
from flashray.images.reframed import reframed
from flashray.images.sheet import contact_sheet
from flashray.images.sizes import Fit, fit_image, resize
from flashray.images.source import SourceImage, open_image, unchanged
from flashray.images.spread import decode_spread, encode_spread, sample_spread
from flashray.images.write_photo import NO_PLACE_FOR_NOTE, check_side, encode_like, encode_png, losses

__all__ = ["SourceImage", "open_image", "unchanged", "reframed", "encode_like", "NO_PLACE_FOR_NOTE"]
__all__ += ["read_header", "MAX_MEGAPIXELS", "ImageLike", "as_image", "as_list", "as_mask", "name_of"]
__all__ += ["OutputFormat", "output_name", "is_image_name", "is_photo_name", "IMAGE_SUFFIXES", "PLUGIN_SUFFIXES"]
__all__ += ["check_side", "losses"]
__all__ += ["Fit", "fit_image", "resize", "encode_png", "contact_sheet", "sample_spread"]
__all__ += ["to_uint8", "from_uint8", "to_uint16", "from_uint16", "to_pil", "saved", "encode_spread", "decode_spread"]
