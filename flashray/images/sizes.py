"""Images brought to a square of a given size, or left whole."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import interpolate

from flashray.errors import ImageError

Fit = Literal["whole", "resize", "crop", "error"]


def fit_image(x_CHW: Tensor, size: int, fit: Fit) -> Tensor:
    """The image as a square [C, size, size] in [-1, 1], or as it is, [C, H, W], with the fit whole.

    resize: its largest centred square, scaled (antialiased bicubic, clamped); crop: its centre, unscaled; error: as it
    is. ImageError when it is too small to crop, or not of that size already.
    """
    height, width = x_CHW.shape[-2:]
    if fit == "whole" or (height, width) == (size, size):
        return x_CHW
    if fit == "error":
        raise ImageError(f"the image has {width} x {height} pixels, not {size} x {size}; fit: resize or crop takes it")
    if fit == "crop":
        if min(height, width) < size:
            raise ImageError(
                f"the image has {width} x {height} pixels, too few to crop {size} x {size}; use fit: resize"
            )
        return _centre(x_CHW, size)
    return resize(_centre(x_CHW, min(height, width))[None], (size, size))[0]


def resize(x_BCHW: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [B, C, H, W] in [-1, 1] at the size (H, W): bicubic, antialiased, clamped."""
    return interpolate(x_BCHW, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)


def _centre(x_CHW: Tensor, size: int) -> Tensor:
    height, width = x_CHW.shape[-2:]
    top, left = (height - size) // 2, (width - size) // 2
    return x_CHW[..., top : top + size, left : left + size].contiguous()
