"""Values in [-1, 1] and the grey levels of 8 and 16 bits that files and screens have."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import torch
from PIL import Image
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded; values outside are clamped."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def to_uint16(x: Tensor) -> Tensor:
    """[-1, 1] to 0 … 65535 as int32, rounded; values outside are clamped.

    Rounding the result to 8 bits gives exactly what `to_uint8` gives of x: 257 levels of 16 bits make one of 8, so the
    borders between two 8-bit levels are borders between 16-bit levels too. Only the arithmetic's own rounding could
    put a value on the other side of a border, and the last line keeps it where `to_uint8` puts it.
    """
    x = x.float().clamp(-1, 1) + 1
    eight = (x * 127.5).round().int() * 257
    return (x * 32767.5).round().int().clamp(eight - 128, eight + 128)


def from_uint8(x: Tensor) -> Tensor:
    """0 … 255 to float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def from_uint16(x: Tensor) -> Tensor:
    """0 … 65535 to float32 in [-1, 1]."""
    return x.float() / 32767.5 - 1


def to_pil(x_CHW: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] to an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(x_CHW).permute(1, 2, 0).contiguous().cpu().numpy())


def saved(picture: Image.Image, format: str, **options: Any) -> bytes:
    """A picture as a file of Pillow's format of this name, with its options."""
    buffer = BytesIO()
    picture.save(buffer, format=format, **options)
    return buffer.getvalue()
