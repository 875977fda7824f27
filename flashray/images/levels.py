"""Values in [-1, 1] and the 8-bit grey levels that files and screens have."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor


def to_uint8(x: Tensor) -> Tensor:
    """[-1, 1] to 0 … 255, rounded; values outside are clamped."""
    return ((x.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def from_uint8(x: Tensor) -> Tensor:
    """0 … 255 to float32 in [-1, 1]."""
    return x.float() / 127.5 - 1


def to_pil(x_CHW: Tensor) -> Image.Image:
    """[3, H, W] in [-1, 1] to an 8-bit RGB picture."""
    return Image.fromarray(to_uint8(x_CHW).permute(1, 2, 0).contiguous().cpu().numpy())
