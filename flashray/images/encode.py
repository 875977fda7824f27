"""Images to PNG bytes, without any metadata."""

from __future__ import annotations

import io

import torch
from torch import Tensor

from flashray.errors import ImageError
from flashray.images.levels import to_pil


def encode_png(x_CHW: Tensor) -> bytes:
    """The image as a PNG of 8-bit RGB: the same image gives the same bytes (no metadata, no dates, fixed compression).

    x is [3, H, W] in [-1, 1], clamped. ImageError when it holds NaN or infinities, which no PNG can.
    """
    if not torch.isfinite(x_CHW).all():
        raise ImageError("the image holds values that are not finite")
    buffer = io.BytesIO()
    to_pil(x_CHW).save(buffer, format="PNG", compress_level=6)
    return buffer.getvalue()
